import { Body, Controller, Delete, Get, HttpCode, Inject, Param, Post, Put } from '@nestjs/common';
import { PrismaService } from './prisma.service';

@Controller()
export class AnswersController {
  constructor(@Inject(PrismaService) private readonly prisma: PrismaService) {}

  @Post('questions/:id/answers')
  answer(@Param('id') id: string, @Body() { authorId, content }: { authorId: number; content: string }) {
    return this.prisma.answer.create({ data: { authorId, content, questionId: Number(id) } });
  }

  @Get('questions/:id/answers')
  list(@Param('id') id: string) {
    return this.prisma.answer.findMany({ where: { questionId: Number(id) }, orderBy: { id: 'asc' } });
  }

  @Put('answers/:id')
  edit(@Param('id') id: string, @Body() { content }: { content: string }) {
    return this.prisma.answer.update({ where: { id: Number(id) }, data: { content } });
  }

  @Delete('answers/:id')
  @HttpCode(204)
  async remove(@Param('id') id: string) {
    await this.prisma.answer.delete({ where: { id: Number(id) } });
  }
}
