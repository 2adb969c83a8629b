import { beforeEach, expect, test } from 'vitest';
import { book, cancel } from '../src/bookings';
import { db } from '../src/db';
import { ada, bob, DAY, tenants } from './data';

beforeEach(tenants);

test('with two add-ons', async () => {
  const made = await book('acme', 'portrait', DAY, ada, ['prints', 'frame']);
  expect(made).toMatchObject({ status: 'PENDING', addOns: [{ bookingId: made.id }, { bookingId: made.id }] });
});

test('the slot is taken then', async () => {
  await book('acme', 'portrait', DAY, ada);
  await expect(book('acme', 'portrait', DAY, bob)).rejects.toThrow('the slot is taken');
});

test('what fails leaves nothing', async () => {
  await expect(book('acme', 'portrait', '2027-06-01', ada)).rejects.toThrow('there is no such slot');
  expect([await db.customer.count(), await db.booking.count(), await db.auditLog.count()]).toEqual([0, 0, 2]);
});

test('two places of one day', async () => {
  const [one, two] = [await book('acme', 'portrait', '2027-05-02', ada), await book('acme', 'portrait', '2027-05-02', bob)];
  expect(two.slotId).toBe(one.slotId);
});

test('a cancelled place is free', async () => {
  const { id, slotId } = await book('acme', 'portrait', DAY, ada);
  expect(await cancel('acme', id)).toBe(true);
  expect(await book('acme', 'portrait', DAY, bob)).toMatchObject({ slotId });
});

test('all slots are free', async () => {
  expect(await db.slot.count({ where: { bookings: { none: {} } } })).toBe(4);
});
