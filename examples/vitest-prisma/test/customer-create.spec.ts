import { expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';

test('the first customer is number 1', async () => {
  expect(await web.customer.create({ data: { email: 'ada@example.org' } })).toEqual({ id: 1, email: 'ada@example.org' });
});

test('and the next test has its own first one', async () => {
  expect(await jobs.customer.create({ data: { email: 'ada@example.org' } })).toEqual({ id: 1, email: 'ada@example.org' });
});

test('not twice', async () => {
  await web.customer.create({ data: { email: 'ada@example.org' } });
  await expect(jobs.customer.create({ data: { email: 'ada@example.org' } })).rejects.toThrow('Unique constraint');
});

test('the same from three sides', async () => {
  const email = 'ada@example.org';
  await Promise.all([web, jobs, admin].map((client) => client.$executeRaw`insert into "Customer" (email) values (${email}) on conflict do nothing`));
  expect(await web.customer.count()).toBe(1);
});
