import { beforeEach, expect, test } from 'vitest';
import { db } from '../src/db';
import { offer, titles } from '../src/services';
import { tenants } from './data';

let acme: number, globex: number;
beforeEach(async () => void ({ acme, globex } = await tenants()));

test('a new one', async () => {
  expect(await offer(acme, 'wedding', 900_00, { album: 120_00 })).toMatchObject({ tenantId: acme, title: 'Wedding' });
});

test('the other one sells it as well', async () => {
  await offer(acme, 'wedding', 900_00);
  expect(await offer(globex, 'wedding', 900_00)).toMatchObject({ tenantId: globex });
});

test('not twice at one tenant', async () => {
  await expect(offer(acme, 'portrait', 1_00)).rejects.toThrow('Unique constraint');
});

test('not of a tenant that is not there', async () => {
  await expect(offer(globex + 1, 'portrait', 1_00)).rejects.toThrow('Foreign key constraint');
});

test('titles are remembered', async () => {
  expect(await titles(acme)).toEqual(['Portrait']);
  await db.service.updateMany({ data: { title: 'Portraits' } });
  expect(await titles(acme)).toEqual(['Portrait']);
});

test('prices rise at one tenant', async () => {
  await db.service.updateMany({ where: { tenant: { slug: 'acme' } }, data: { priceCents: { increment: 10_00 } } });
  const found = await db.service.findMany({ orderBy: { id: 'asc' } });
  expect(found.map(({ priceCents }) => priceCents)).toEqual([110_00, 100_00]);
});
