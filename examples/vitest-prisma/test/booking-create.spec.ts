import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(catalogue);

test('a customer books a day', async () => {
  const booking = await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  expect(booking).toMatchObject({ id: 1, status: 'PENDING', addOns: [] });
});

test('the first booking is seen by everybody', async () => {
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  const counts = await Promise.all([web, jobs, admin].map((client) => client.booking.count()));
  expect(counts).toEqual([1, 1, 1]);
});

test('a customer is made once', async () => {
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  await book(web, 'weekend', 'ada@example.org', '2027-05-01');
  expect(await admin.customer.findMany()).toEqual([{ id: 1, email: 'ada@example.org' }]);
});

test('nobody books what is not there', async () => {
  await expect(book(web, 'cruise', 'ada@example.org', '2027-05-01')).rejects.toThrow('No record was found');
  expect(await admin.customer.count()).toBe(0);
});
