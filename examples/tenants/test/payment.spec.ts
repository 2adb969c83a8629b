import { beforeEach, expect, test } from 'vitest';
import { book } from '../src/bookings';
import { db } from '../src/db';
import { pay, refund } from '../src/payments';
import { ada, bob, DAY, tenants } from './data';

let booking: number;
beforeEach(async () => {
  await tenants();
  booking = (await book('acme', 'portrait', DAY, ada)).id;
});

test('of a booking', async () => {
  expect(await pay(booking, 'ref-1', 100_00)).toMatchObject({ reference: 'ref-1', cents: 100_00, bookingId: booking });
  expect(await db.booking.findFirst()).toMatchObject({ id: booking, status: 'PAID' });
});

test('a reference comes once', async () => {
  await pay(booking, 'ref-1', 100_00);
  const { id } = await book('globex', 'portrait', DAY, bob);
  await expect(pay(id, 'ref-1', 100_00)).rejects.toThrow('Unique constraint');
  expect(await db.booking.findUnique({ where: { id } })).toMatchObject({ status: 'PENDING' });
});

test('not of nothing', async () => {
  await expect(pay(booking + 1, 'ref-1', 100_00)).rejects.toThrow('Foreign key constraint');
});

test('some goes back', async () => {
  await pay(booking, 'ref-1', 100_00);
  expect([await refund('ref-1', 30_00), await refund('ref-1', 30_00)]).toEqual([70_00, 40_00]);
  await expect(refund('ref-1', 50_00)).rejects.toThrow('only 4000 are left');
});

test('two refunds at once are not more than was paid', async () => {
  await pay(booking, 'ref-1', 100_00);
  const done = await Promise.allSettled([refund('ref-1', 60_00), refund('ref-1', 60_00)]);
  expect(done.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  expect(await db.refund.aggregate({ _sum: { cents: true } })).toEqual({ _sum: { cents: 60_00 } });
});

test('none yet', async () => {
  expect([await db.payment.count(), await db.refund.count()]).toEqual([0, 0]);
});
