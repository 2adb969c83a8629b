import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(async () => {
  await catalogue();
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  await book(web, 'elopement', 'ada@example.com', '2027-05-02');
});

const merge = () =>
  admin.$transaction([
    admin.booking.updateMany({ where: { customerId: 2 }, data: { customerId: 1 } }),
    admin.customer.delete({ where: { id: 2 } }),
  ]);

test('bookings change hands', async () => {
  await merge();
  expect(await web.booking.count({ where: { customerId: 1 } })).toBe(2);
});

test('one customer is left', async () => {
  await merge();
  expect(await jobs.customer.count()).toBe(1);
});

test('not a second time', async () => {
  await merge();
  await expect(merge()).rejects.toThrow('No record was found');
});

test('before it there are two', async () => {
  expect(await jobs.customer.count()).toBe(2);
});
