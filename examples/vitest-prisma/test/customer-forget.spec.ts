import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(async () => {
  await catalogue();
  await book(web, 'elopement', 'ada@example.org', '2027-05-01', ['photos']);
});

test('everything of a customer goes', async () => {
  await admin.$transaction([
    admin.bookingAddOn.deleteMany({ where: { booking: { customerId: 1 } } }),
    admin.booking.deleteMany({ where: { customerId: 1 } }),
    admin.customer.delete({ where: { id: 1 } }),
  ]);
  expect(await Promise.all([web.customer.count(), web.booking.count(), web.bookingAddOn.count()])).toEqual([0, 0, 0]);
});

test('the address is blanked', async () => {
  await admin.customer.update({ where: { id: 1 }, data: { email: 'forgotten-1' } });
  expect(await jobs.booking.count({ where: { customer: { email: 'forgotten-1' } } })).toBe(1);
});

test('the catalogue stays', async () => {
  expect(await jobs.addOn.count()).toBe(2);
});

test('the day is free again', async () => {
  await admin.$executeRaw`truncate "BookingAddOn", "Booking" restart identity`;
  expect((await book(web, 'elopement', 'bob@example.org', '2027-05-01')).id).toBe(1);
});
