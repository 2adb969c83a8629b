import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('who has an account gets a session', async () => {
  const { id } = await app.student();
  expect((await app.ask('POST', '/sessions', { email: 'ada@example.test' })).body).toEqual({ userId: id });
});

test('who has none does not', async () => {
  expect((await app.ask('POST', '/sessions', { email: 'ada@example.test' })).status).toBe(401);
});
