import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';

beforeEach(async () => {
  const customer = await web.customer.create({ data: { email: 'ada@example.org' } });
  const resets = ['old', 'older', 'new'].map((token) => ({ token, customerId: customer.id, used: token !== 'new' }));
  await web.passwordReset.createMany({ data: resets });
});

const sweep = () => jobs.passwordReset.deleteMany({ where: { used: true } });

test('used ones are swept', async () => {
  expect(await sweep()).toEqual({ count: 2 });
  expect((await web.passwordReset.findMany()).map(({ token }) => token)).toEqual(['new']);
});

test('a second time there is nothing to sweep', async () => {
  await sweep();
  expect(await sweep()).toEqual({ count: 0 });
});

test('the customer goes when no token is left', async () => {
  await admin.passwordReset.deleteMany();
  await admin.customer.delete({ where: { id: 1 } });
  expect(await web.customer.count()).toBe(0);
});

test('and not before', async () => {
  await expect(admin.customer.delete({ where: { id: 1 } })).rejects.toThrow('Foreign key constraint');
});
