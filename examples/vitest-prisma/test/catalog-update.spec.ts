import { beforeEach, expect, test } from 'vitest';
import { admin, web } from '../src/clients';
import { catalogue } from './data';

beforeEach(catalogue);

test('a price', async () => {
  await admin.package.update({ where: { slug: 'elopement' }, data: { priceCents: 90_000 } });
  expect(await web.package.findUnique({ where: { id: 1 } })).toMatchObject({ priceCents: 90_000 });
});

test('the price is the old one again', async () => {
  expect(await web.package.findUnique({ where: { id: 1 } })).toMatchObject({ priceCents: 100_000 });
});

test('all prices', async () => {
  await admin.package.updateMany({ data: { priceCents: { increment: 1_000 } } });
  expect((await web.package.findMany({ orderBy: { id: 'asc' } })).map((p) => p.priceCents)).toEqual([101_000, 251_000]);
});

test('a slug that is taken', async () => {
  await expect(admin.package.update({ where: { id: 2 }, data: { slug: 'elopement' } })).rejects.toThrow('Unique constraint');
});
