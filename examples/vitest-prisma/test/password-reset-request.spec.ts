import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';

beforeEach(async () => {
  await web.customer.create({ data: { email: 'ada@example.org' } });
});

test('a token for a customer', async () => {
  const made = await web.passwordReset.create({ data: { token: 'secret', customer: { connect: { email: 'ada@example.org' } } } });
  expect(made).toEqual({ id: 1, token: 'secret', used: false, customerId: 1 });
});

test('the same token in another test', async () => {
  await web.passwordReset.create({ data: { token: 'secret', customerId: 1 } });
  expect(await jobs.passwordReset.count()).toBe(1);
});

test('not for a stranger', async () => {
  await expect(web.passwordReset.create({ data: { token: 'secret', customerId: 2 } })).rejects.toThrow('Foreign key constraint');
});

test('three at once', async () => {
  await Promise.all([web, jobs, admin].map((client, n) => client.passwordReset.create({ data: { token: `t${n}`, customerId: 1 } })));
  expect(await web.passwordReset.count({ where: { customerId: 1 } })).toBe(3);
});
