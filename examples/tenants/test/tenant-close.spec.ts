import { beforeEach, expect, test } from 'vitest';
import { book } from '../src/bookings';
import { db } from '../src/db';
import { pay, refund } from '../src/payments';
import { close } from '../src/tenants';
import { ada, bob, DAY, tenants } from './data';

beforeEach(async () => {
  await tenants();
  for (const [slug, email] of [['acme', ada], ['globex', bob]]) {
    const { id } = await book(slug, 'portrait', DAY, email, ['frame']);
    await pay(id, `ref-${slug}`, 135_00);
    await refund(`ref-${slug}`, 35_00);
  }
});

const everything = () =>
  Promise.all([db.tenant.count(), db.member.count(), db.service.count(), db.slot.count(), db.booking.count(), db.payment.count(), db.refund.count()]);

test('nothing of it is left', async () => {
  await close('acme');
  await close('globex');
  expect(await everything()).toEqual([0, 0, 0, 0, 0, 0, 0]);
});

test('the other one stays', async () => {
  await close('acme');
  expect(await everything()).toEqual([1, 1, 1, 2, 1, 1, 1]);
});

test('not a parent before its children', async () => {
  await expect(db.tenant.delete({ where: { slug: 'acme' } })).rejects.toThrow('Foreign key constraint');
});

test('not a payment before its refunds', async () => {
  await expect(db.payment.delete({ where: { reference: 'ref-acme' } })).rejects.toThrow('Foreign key constraint');
});

test('the slug is free again', async () => {
  await close('acme');
  expect(await db.tenant.create({ data: { slug: 'acme', name: 'Acme' } })).toMatchObject({ slug: 'acme', name: 'Acme' });
});

test('all of both is here', async () => {
  expect(await everything()).toEqual([2, 2, 2, 4, 2, 2, 2]);
});
