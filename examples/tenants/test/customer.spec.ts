import { beforeEach, expect, test } from 'vitest';
import { book } from '../src/bookings';
import { db } from '../src/db';
import { ada, bob, DAY, tenants } from './data';

let acme: number;
beforeEach(async () => void ({ acme } = await tenants()));

test('the first booking makes a customer', async () => {
  await book('acme', 'portrait', DAY, ada);
  expect(await db.customer.findMany({ select: { tenantId: true, email: true } })).toEqual([{ tenantId: acme, email: ada }]);
});

test('the second one does not', async () => {
  await book('acme', 'portrait', DAY, ada);
  await book('acme', 'portrait', '2027-05-02', ada);
  expect(await db.customer.count()).toBe(1);
});

test('an address is one customer of a tenant', async () => {
  await db.customer.create({ data: { tenantId: acme, email: ada } });
  await expect(db.customer.create({ data: { tenantId: acme, email: ada } })).rejects.toThrow('Unique constraint');
});

test('a new address', async () => {
  const { id } = await db.customer.create({ data: { tenantId: acme, email: ada } });
  await db.customer.update({ where: { tenantId_email: { tenantId: acme, email: ada } }, data: { email: bob } });
  expect(await db.customer.findUnique({ where: { id } })).toMatchObject({ email: bob });
});

test('not while there are bookings', async () => {
  const { customerId } = await book('acme', 'portrait', DAY, ada);
  await expect(db.customer.delete({ where: { id: customerId } })).rejects.toThrow('Foreign key constraint');
});

test('nobody is there yet', async () => {
  expect(await db.customer.count()).toBe(0);
});
