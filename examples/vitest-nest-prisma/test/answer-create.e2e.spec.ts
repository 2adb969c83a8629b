import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('a question is answered', async () => {
  const { id } = await app.student();
  const made = await app.question(id);
  expect(await app.answer(made.id, id)).toMatchObject({ id: 1, questionId: made.id });
});

test('one that is not there is not', async () => {
  const { id } = await app.student();
  expect((await app.ask('POST', '/questions/1/answers', { authorId: id, content: 'So.' })).status).toBe(500);
  expect(await app.prisma.answer.count()).toBe(0);
});
