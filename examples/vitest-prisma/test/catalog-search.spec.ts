import { beforeEach, expect, test } from 'vitest';
import { web } from '../src/clients';
import { catalogue } from './data';

beforeEach(catalogue);

test('by title, whatever its case', async () => {
  const found = await web.package.findMany({ where: { title: { contains: 'ELOPE', mode: 'insensitive' } } });
  expect(found.map(({ id }) => id)).toEqual([1]);
});

test('by price', async () => {
  expect(await web.package.count({ where: { priceCents: { lt: 200_000 } } })).toBe(1);
});

test('the dearest', async () => {
  expect((await web.package.aggregate({ _max: { priceCents: true } }))._max.priceCents).toBe(250_000);
});

test('by what can be added', async () => {
  expect(await web.package.count({ where: { addOns: { some: { slug: 'flowers' } } } })).toBe(1);
});
