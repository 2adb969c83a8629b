import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('a question is found by its slug, with its author', async () => {
  const { id } = await app.student();
  await app.question(id);
  expect((await app.ask('GET', '/questions/how-do-i-test')).body).toMatchObject({ title: 'How do I test?', author: { name: 'Ada' } });
});

test('an unknown slug is not', async () => {
  expect((await app.ask('GET', '/questions/how-do-i-test')).status).toBe(404);
});
