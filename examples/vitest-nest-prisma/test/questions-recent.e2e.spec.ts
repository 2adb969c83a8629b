import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('the newest come first', async () => {
  const { id } = await app.student();
  for (const title of ['First', 'Second', 'Third']) await app.question(id, title);
  expect((await app.ask('GET', '/questions')).body.map(({ title }: { title: string }) => title)).toEqual(['Third', 'Second', 'First']);
});

test('twenty to a page', async () => {
  const { id } = await app.student();
  for (let n = 1; n <= 22; n += 1) await app.question(id, `Question ${n}`);
  expect((await app.ask('GET', '/questions?page=2')).body.map(({ id: each }: { id: number }) => each)).toEqual([2, 1]);
});
