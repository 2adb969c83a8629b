import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';

beforeEach(async () => {
  await web.customer.createMany({ data: [{ email: 'ada@example.org' }, { email: 'bob@example.org' }] });
});

test('a new address', async () => {
  await web.customer.update({ where: { email: 'ada@example.org' }, data: { email: 'ada@example.com' } });
  expect(await jobs.customer.findUnique({ where: { id: 1 } })).toEqual({ id: 1, email: 'ada@example.com' });
});

test('one that is taken', async () => {
  await expect(web.customer.update({ where: { id: 2 }, data: { email: 'ada@example.org' } })).rejects.toThrow('Unique constraint');
});

test('all of them in lower case', async () => {
  await admin.$executeRaw`update "Customer" set email = upper(email)`;
  await admin.$executeRaw`update "Customer" set email = lower(email)`;
  expect(await web.customer.count({ where: { email: { endsWith: '@example.org' } } })).toBe(2);
});

test('one that is not there', async () => {
  await expect(web.customer.update({ where: { id: 3 }, data: { email: 'eve@example.org' } })).rejects.toThrow('No record was found');
});
