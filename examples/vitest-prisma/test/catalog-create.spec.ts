import { expect, test } from 'vitest';
import { jobs, web } from '../src/clients';

test('a package', async () => {
  const made = await web.package.create({ data: { slug: 'elopement', title: 'Elopement', priceCents: 100_000 } });
  expect(made).toEqual({ id: 1, slug: 'elopement', title: 'Elopement', priceCents: 100_000, active: true });
});

test('the same slug as in the test before', async () => {
  await web.package.create({ data: { slug: 'elopement', title: 'Another', priceCents: 1 } });
  expect(await jobs.package.count()).toBe(1);
});

test('not twice', async () => {
  const data = { slug: 'elopement', title: 'Elopement', priceCents: 100_000 };
  await web.package.create({ data });
  await expect(jobs.package.create({ data })).rejects.toThrow('Unique constraint');
});

test('with its add-ons', async () => {
  await web.package.create({ data: { slug: 'a', title: 'A', priceCents: 1, addOns: { create: { slug: 'b', priceCents: 2 } } } });
  expect(await jobs.addOn.findMany()).toEqual([{ id: 1, slug: 'b', priceCents: 2, packageId: 1 }]);
});
