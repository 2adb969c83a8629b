import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(async () => {
  await catalogue();
  for (const day of ['2027-05-03', '2027-05-01', '2027-05-02']) await book(web, 'elopement', 'ada@example.org', day);
});

test('in the order of days', async () => {
  const found = await admin.booking.findMany({ orderBy: { day: 'asc' } });
  expect(found.map(({ id }) => id)).toEqual([2, 3, 1]);
});

test('a page of them', async () => {
  expect((await admin.booking.findMany({ orderBy: { id: 'asc' }, skip: 1, take: 1 })).map(({ id }) => id)).toEqual([2]);
});

test('by status', async () => {
  await jobs.booking.update({ where: { id: 2 }, data: { status: 'CONFIRMED' } });
  expect(await admin.booking.groupBy({ by: 'status', _count: true, orderBy: { status: 'asc' } })).toEqual([
    { status: 'CONFIRMED', _count: 1 }, { status: 'PENDING', _count: 2 },
  ]);
});

test('of a customer', async () => {
  const { bookings } = await admin.customer.findUniqueOrThrow({ where: { id: 1 }, include: { bookings: true } });
  expect(bookings).toHaveLength(3);
});
