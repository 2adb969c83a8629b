// The one client of the process: what becomes of its sessions over the resets that come before each of these tests.
import { PrismaPg } from '@prisma/adapter-pg';
import { expect, test } from 'vitest';
import { PrismaClient } from '../generated/client';
import { db } from '../src/db';
import { tenants } from './data';

let first: number | undefined;

async function pid() {
  const [{ pid }] = await db.$queryRaw<{ pid: number }[]>`select pg_backend_pid() as pid`;
  return pid;
}

const sleeps = (client: PrismaClient, count: number) => Array.from({ length: count }, () => client.$executeRaw`select pg_sleep(0.2)`);

test('a session', async () => {
  first = await pid();
  await tenants();
  expect(await db.tenant.count()).toBe(2);
});

test('is still the same one, in an empty database', async () => {
  expect(await pid()).toBe(first);
  expect(await db.tenant.count()).toBe(0);
});

test('keeps what it has prepared', async () => {
  expect(await pid()).toBe(first);
  const prepared = await db.$queryRaw<{ statement: string }[]>`select statement from pg_prepared_statements`;
  // The first test inserted tenants, and none of those since.
  expect(prepared.filter(({ statement }) => /^insert into .*"Tenant"/i.test(statement))).toHaveLength(1);
});

test('works with it: the same inserts, the same numbers', async () => {
  await tenants();
  expect(await db.tenant.findMany({ select: { id: true, slug: true } })).toEqual([{ id: 1, slug: 'acme' }, { id: 2, slug: 'globex' }]);
  expect(await pid()).toBe(first);
});

test('forty queries at once take three sessions', async () => {
  const all = await Promise.all(Array.from({ length: 40 }, pid));
  expect(new Set(all).size).toBeLessThanOrEqual(3);
  expect(all).toContain(first);
});

test('a client that somebody makes besides cannot take more than this worker has', async () => {
  const another = new PrismaClient({ adapter: new PrismaPg({ connectionString: process.env.DATABASE_URL, max: 5 }) });
  await Promise.all(sleeps(db, 3));
  const [ours, others] = await Promise.all([Promise.allSettled(sleeps(db, 3)), Promise.allSettled(sleeps(another, 5))]);
  expect(ours.map(({ status }) => status)).toEqual(Array(3).fill('fulfilled'));
  const refused = others.flatMap((one) => (one.status === 'rejected' ? [one.reason.message] : []));
  expect(refused.length).toBeGreaterThan(0);
  for (const message of refused) expect(message).toContain('too many connections for database');
  await another.$disconnect();
});
