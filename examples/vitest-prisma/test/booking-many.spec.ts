import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(catalogue);

const days = Array.from({ length: 9 }, (_, day) => `2027-06-0${day + 1}`);

test('nine at once, from all three clients', async () => {
  const clients = [web, jobs, admin];
  await web.customer.create({ data: { email: 'ada@example.org' } });
  await Promise.all(days.map((day, n) => book(clients[n % 3], 'elopement', 'ada@example.org', day)));
  expect(await admin.booking.count()).toBe(9);
});

test('nine readers at once', async () => {
  await book(web, 'elopement', 'ada@example.org', days[0]);
  const counts = await Promise.all(days.map((_, n) => [web, jobs, admin][n % 3].booking.count()));
  expect(counts).toEqual(days.map(() => 1));
});

test('in one statement', async () => {
  await web.customer.create({ data: { email: 'ada@example.org' } });
  await web.booking.createMany({ data: days.map((day) => ({ day: new Date(day), packageId: 1, customerId: 1 })) });
  expect(await jobs.booking.count()).toBe(9);
});

test('none', async () => {
  expect(await admin.booking.count()).toBe(0);
});
