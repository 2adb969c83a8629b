import { Body, Controller, Delete, Get, HttpCode, Inject, Param, Post } from '@nestjs/common';
import { PrismaService } from './prisma.service';

type Written = { authorId: number; content: string };

@Controller()
export class CommentsController {
  constructor(@Inject(PrismaService) private readonly prisma: PrismaService) {}

  @Post('questions/:id/comments')
  onQuestion(@Param('id') id: string, @Body() { authorId, content }: Written) {
    return this.prisma.comment.create({ data: { authorId, content, questionId: Number(id) } });
  }

  @Post('answers/:id/comments')
  onAnswer(@Param('id') id: string, @Body() { authorId, content }: Written) {
    return this.prisma.comment.create({ data: { authorId, content, answerId: Number(id) } });
  }

  @Get('questions/:id/comments')
  ofQuestion(@Param('id') id: string) {
    return this.prisma.comment.findMany({ where: { questionId: Number(id) }, include: { author: true }, orderBy: { id: 'asc' } });
  }

  @Delete('comments/:id')
  @HttpCode(204)
  async remove(@Param('id') id: string) {
    await this.prisma.comment.delete({ where: { id: Number(id) } });
  }
}
