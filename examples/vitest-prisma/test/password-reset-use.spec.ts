import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { changePassword } from '../src/bookings';

beforeEach(async () => {
  await web.customer.create({ data: { email: 'ada@example.org', resets: { create: { token: 'secret' } } } });
});

test('once', async () => {
  expect(await changePassword(web, 'secret')).toBe(true);
  expect(await changePassword(web, 'secret')).toBe(false);
});

test('by one of three at once', async () => {
  const done = await Promise.all([web, jobs, admin].map((client) => changePassword(client, 'secret')));
  expect(done.filter(Boolean)).toHaveLength(1);
});

test('not a wrong one', async () => {
  expect(await changePassword(web, 'guessed')).toBe(false);
});

test('it was not used yet', async () => {
  expect(await jobs.passwordReset.count({ where: { used: false } })).toBe(1);
});
