import 'reflect-metadata';
import { Test } from '@nestjs/testing';
import { afterAll, beforeAll } from 'vitest';
import { ForumModule } from '../src/forum.module';
import { PrismaService } from '../src/prisma.service';

/** The application of a file, over HTTP; its pool stays open from test to test. */
export function forum() {
  let base = '';
  let close = async () => {};
  const the = {} as { prisma: PrismaService };

  beforeAll(async () => {
    const module = await Test.createTestingModule({ imports: [ForumModule] }).compile();
    const app = module.createNestApplication({ logger: ['error'] });
    await app.listen(0, '127.0.0.1');
    base = await app.getUrl();
    close = () => app.close();
    the.prisma = app.get(PrismaService);
  });
  afterAll(() => close());

  const ask = async (method: string, path: string, body?: unknown) => {
    const answer = await fetch(base + path, {
      method,
      headers: { 'content-type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    return { status: answer.status, body: text ? JSON.parse(text) : undefined };
  };
  // The same in every test and worker: nothing is made unique.
  const student = async (email = 'ada@example.test') => (await ask('POST', '/accounts', { name: 'Ada', email })).body;
  const question = async (authorId: number, title = 'How do I test?') =>
    (await ask('POST', '/questions', { authorId, title, content: 'With what?' })).body;
  const answer = async (id: number, authorId: number) => (await ask('POST', `/questions/${id}/answers`, { authorId, content: 'So.' })).body;
  return Object.assign(the, { ask, student, question, answer });
}
