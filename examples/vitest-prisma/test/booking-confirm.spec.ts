import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(async () => {
  await catalogue();
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
});

const confirm = (client: typeof web) =>
  client.booking.updateMany({ where: { id: 1, status: 'PENDING' }, data: { status: 'CONFIRMED' } });

test('once', async () => {
  expect(await confirm(jobs)).toEqual({ count: 1 });
  expect(await confirm(jobs)).toEqual({ count: 0 });
});

test('by one of three at once', async () => {
  const done = await Promise.all([web, jobs, admin].map(confirm));
  expect(done.map(({ count }) => count).sort()).toEqual([0, 0, 1]);
});

test('it is pending until then', async () => {
  expect(await admin.booking.count({ where: { status: 'PENDING' } })).toBe(1);
});

test('not one that was cancelled', async () => {
  await web.booking.update({ where: { id: 1 }, data: { status: 'CANCELLED' } });
  expect(await confirm(jobs)).toEqual({ count: 0 });
});
