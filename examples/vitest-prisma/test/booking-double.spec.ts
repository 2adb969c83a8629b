import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(catalogue);

test('a day is booked once', async () => {
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  await expect(book(web, 'elopement', 'bob@example.org', '2027-05-01')).rejects.toThrow('Unique constraint');
  expect(await admin.customer.count()).toBe(1);
});

test('of two at once one wins', async () => {
  const both = await Promise.allSettled([
    book(web, 'elopement', 'ada@example.org', '2027-05-01'),
    book(jobs, 'elopement', 'bob@example.org', '2027-05-01'),
  ]);
  expect(both.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  expect(await admin.booking.count()).toBe(1);
});

test('another day is free', async () => {
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  expect((await book(web, 'elopement', 'ada@example.org', '2027-05-02')).id).toBe(2);
});

test('another package is free', async () => {
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  expect((await book(web, 'weekend', 'bob@example.org', '2027-05-01')).customerId).toBe(2);
});
