import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('answers come in the order in which they were given', async () => {
  const { id } = await app.student();
  const made = await app.question(id);
  for (let n = 0; n < 5; n += 1) await app.answer(made.id, id);
  expect((await app.ask('GET', `/questions/${made.id}/answers`)).body.map(({ id: each }: { id: number }) => each)).toEqual([1, 2, 3, 4, 5]);
});
