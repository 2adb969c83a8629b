import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('the author of the question chooses the best one', async () => {
  const { id } = await app.student();
  const made = await app.question(id);
  const given = await app.answer(made.id, id);
  expect((await app.ask('PATCH', `/questions/${made.id}/best/${given.id}`, { authorId: id })).body.bestAnswerId).toBe(given.id);
});

test('when it goes, none is the best', async () => {
  const { id } = await app.student();
  const made = await app.question(id);
  const given = await app.answer(made.id, id);
  await app.ask('PATCH', `/questions/${made.id}/best/${given.id}`, { authorId: id });
  await app.ask('DELETE', `/answers/${given.id}`);
  expect((await app.prisma.question.findFirstOrThrow()).bestAnswerId).toBeNull();
});
