import { beforeEach, expect, test } from 'vitest';
import { book, cancel } from '../src/bookings';
import { db } from '../src/db';
import { offer, titles } from '../src/services';
import { ada, DAY, tenants } from './data';

let acme: number, globex: number;
beforeEach(async () => void ({ acme, globex } = await tenants()));

test('both sell a service of the same name', async () => {
  const found = await db.service.findMany({ where: { slug: 'portrait' }, select: { tenantId: true }, orderBy: { id: 'asc' } });
  expect(found).toEqual([{ tenantId: acme }, { tenantId: globex }]);
});

test('what one offers is not the other\'s', async () => {
  await offer(acme, 'wedding', 900_00);
  expect([await titles(acme), await titles(globex)]).toEqual([['Portrait', 'Wedding'], ['Portrait']]);
});

test('the same customer is another one there', async () => {
  await book('acme', 'portrait', DAY, ada);
  await book('globex', 'portrait', DAY, ada);
  const found = await db.customer.findMany({ select: { tenantId: true, email: true }, orderBy: { id: 'asc' } });
  expect(found).toEqual([{ tenantId: acme, email: ada }, { tenantId: globex, email: ada }]);
});

test('nobody cancels a booking of the other', async () => {
  const { id } = await book('acme', 'portrait', DAY, ada);
  expect(await cancel('globex', id)).toBe(false);
  expect(await cancel('acme', id)).toBe(true);
});

test('a taken slot is free at the other', async () => {
  await book('acme', 'portrait', DAY, ada);
  expect(await book('globex', 'portrait', DAY, ada)).toMatchObject({ tenantId: globex });
});

test('both have one member and one line of audit', async () => {
  const counts = { _count: { select: { members: true, audit: true, bookings: true } } };
  expect(await db.tenant.findMany({ select: counts })).toEqual(Array(2).fill({ _count: { members: 1, audit: 1, bookings: 0 } }));
});
