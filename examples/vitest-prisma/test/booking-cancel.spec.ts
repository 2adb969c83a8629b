import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(async () => {
  await catalogue();
  await book(web, 'elopement', 'ada@example.org', '2027-05-01', ['flowers']);
});

test('a cancelled booking stays', async () => {
  await web.booking.update({ where: { id: 1 }, data: { status: 'CANCELLED' } });
  expect(await jobs.booking.findMany({ select: { status: true } })).toEqual([{ status: 'CANCELLED' }]);
});

test('a deleted one takes its add-ons along', async () => {
  await web.$transaction([web.bookingAddOn.deleteMany({ where: { bookingId: 1 } }), web.booking.delete({ where: { id: 1 } })]);
  expect(await jobs.booking.count()).toBe(0);
  expect(await jobs.bookingAddOn.count()).toBe(0);
});

test('it is not deleted while it has add-ons', async () => {
  await expect(web.booking.delete({ where: { id: 1 } })).rejects.toThrow('Foreign key constraint');
});

test('the customer is not deleted with a booking', async () => {
  await expect(admin.customer.delete({ where: { email: 'ada@example.org' } })).rejects.toThrow('Foreign key constraint');
});
