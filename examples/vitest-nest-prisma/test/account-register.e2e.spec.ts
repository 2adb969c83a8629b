import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('a student registers', async () => {
  const made = await app.student();
  expect(made).toMatchObject({ id: 1, email: 'ada@example.test', role: 'STUDENT' });
  expect(await app.prisma.user.count()).toBe(1);
});

test('an address has one account', async () => {
  await app.student();
  expect((await app.ask('POST', '/accounts', { name: 'Eve', email: 'ada@example.test' })).status).toBe(409);
});
