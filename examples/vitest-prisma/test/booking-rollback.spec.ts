import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(catalogue);

test('what fails leaves no customer', async () => {
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  await book(web, 'elopement', 'bob@example.org', '2027-05-01').catch(() => {});
  expect((await admin.customer.findMany()).map(({ email }) => email)).toEqual(['ada@example.org']);
});

test('nobody sees it before it is committed', async () => {
  await web.$transaction(async (inner) => {
    await inner.customer.create({ data: { email: 'ada@example.org' } });
    expect(await jobs.customer.count()).toBe(0);
  });
  expect(await jobs.customer.count()).toBe(1);
});

test('nor what is given up', async () => {
  const given = web.$transaction(async (inner) => {
    await inner.customer.create({ data: { email: 'ada@example.org' } });
    throw new Error('given up');
  });
  await expect(given).rejects.toThrow('given up');
  expect(await jobs.customer.count()).toBe(0);
});

test('several statements as one', async () => {
  await web.$transaction(['ada', 'bob', 'eve'].map((name) => web.customer.create({ data: { email: `${name}@example.org` } })));
  expect(await admin.customer.count()).toBe(3);
});
