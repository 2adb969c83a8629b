import { Module } from '@nestjs/common';
import { AnswersController } from './answers.controller';
import { CommentsController } from './comments.controller';
import { PrismaService } from './prisma.service';
import { QuestionsController } from './questions.controller';
import { UsersController } from './users.controller';

@Module({
  controllers: [UsersController, QuestionsController, AnswersController, CommentsController],
  providers: [PrismaService],
})
export class ForumModule {}
