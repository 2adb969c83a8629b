import { Body, Controller, Delete, ForbiddenException, Get, HttpCode, Inject, NotFoundException, Param, Patch, Post, Put, Query } from '@nestjs/common';
import { PrismaService } from './prisma.service';

export const slug = (title: string) => title.toLowerCase().replace(/\W+/g, '-').replace(/^-|-$/g, '');

type Body_ = { authorId: number; title: string; content: string; attachmentIds?: number[] };

@Controller('questions')
export class QuestionsController {
  constructor(@Inject(PrismaService) private readonly prisma: PrismaService) {}

  @Post()
  async create(@Body() { authorId, title, content, attachmentIds = [] }: Body_) {
    return this.prisma.$transaction(async (tx) => {
      const question = await tx.question.create({ data: { authorId, title, content, slug: slug(title) } });
      await tx.attachment.updateMany({ where: { id: { in: attachmentIds } }, data: { questionId: question.id } });
      return question;
    });
  }

  @Get()
  async recent(@Query('page') page = '1') {
    return this.prisma.question.findMany({ orderBy: { id: 'desc' }, take: 20, skip: (Number(page) - 1) * 20 });
  }

  @Get(':slug')
  async bySlug(@Param('slug') slug: string) {
    const found = await this.prisma.question.findUnique({ where: { slug }, include: { author: true, attachments: true } });
    if (!found) throw new NotFoundException(slug);
    return found;
  }

  @Put(':id')
  async edit(@Param('id') id: string, @Body() { authorId, title, content, attachmentIds = [] }: Body_) {
    await this.own(Number(id), authorId);
    return this.prisma.question.update({
      where: { id: Number(id) },
      data: { title, content, slug: slug(title), attachments: { set: attachmentIds.map((each) => ({ id: each })) } },
    });
  }

  @Delete(':id')
  @HttpCode(204)
  async remove(@Param('id') id: string, @Query('authorId') authorId: string) {
    await this.own(Number(id), Number(authorId));
    await this.prisma.question.delete({ where: { id: Number(id) } });
  }

  @Patch(':id/best/:answer')
  async choose(@Param('id') id: string, @Param('answer') answer: string, @Body() { authorId }: { authorId: number }) {
    await this.own(Number(id), authorId);
    return this.prisma.question.update({ where: { id: Number(id) }, data: { bestAnswerId: Number(answer) } });
  }

  @Post('attachments')
  async upload(@Body() data: { title: string; link: string }) {
    return this.prisma.attachment.create({ data });
  }

  private async own(id: number, authorId: number) {
    const found = await this.prisma.question.findUnique({ where: { id } });
    if (!found) throw new NotFoundException(id);
    if (found.authorId !== authorId) throw new ForbiddenException();
  }
}
