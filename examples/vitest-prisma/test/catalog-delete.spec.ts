import { beforeEach, expect, test } from 'vitest';
import { admin, web } from '../src/clients';
import { catalogue } from './data';

beforeEach(catalogue);

test('one without add-ons', async () => {
  await admin.package.delete({ where: { slug: 'weekend' } });
  expect((await web.package.findMany()).map(({ slug }) => slug)).toEqual(['elopement']);
});

test('not one with add-ons', async () => {
  await expect(admin.package.delete({ where: { slug: 'elopement' } })).rejects.toThrow('Foreign key constraint');
});

test('both are there again', async () => {
  expect(await web.package.count()).toBe(2);
});

test('everything', async () => {
  await admin.addOn.deleteMany();
  expect(await admin.package.deleteMany()).toEqual({ count: 2 });
});
