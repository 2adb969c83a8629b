import { beforeEach, expect, test } from 'vitest';
import { book, cancel } from '../src/bookings';
import { db } from '../src/db';
import { ada, bob, DAY, tenants } from './data';

beforeEach(tenants);

const messages = (done: PromiseSettledResult<unknown>[]) => done.flatMap((one) => (one.status === 'rejected' ? [one.reason.message] : []));
const guests = Array.from({ length: 6 }, (_, n) => `guest${n}@example.org`);

test('six want the one place', async () => {
  const done = await Promise.allSettled(guests.map((email) => book('acme', 'portrait', DAY, email)));
  expect(messages(done)).toEqual(Array(5).fill('the slot is taken'));
  expect([await db.booking.count(), await db.customer.count()]).toEqual([1, 1]);
});

test('six want the two places', async () => {
  const done = await Promise.allSettled(guests.map((email) => book('acme', 'portrait', '2027-05-02', email)));
  expect(messages(done)).toHaveLength(4);
  expect(await db.booking.count()).toBe(2);
});

test('two tenants do not wait for each other', async () => {
  await Promise.all(['acme', 'globex'].map((slug) => book(slug, 'portrait', DAY, ada)));
  expect(await db.booking.count()).toBe(2);
});

test('a lock holds until the transaction ends', async () => {
  const order: string[] = [];
  let later: Promise<unknown> | undefined;
  await db.$transaction(async (inner) => {
    await inner.$queryRaw`select id from "Slot" for update`;
    later = book('acme', 'portrait', DAY, ada).then(() => order.push('booked'));
    // It is seen to wait, and only then let go.
    await expect.poll(() => waiting(inner), { timeout: 20_000 }).toBe(1);
    order.push('let go');
  });
  await later;
  expect(order).toEqual(['let go', 'booked']);
});

async function waiting(inner: Pick<typeof db, '$queryRaw'>) {
  const [{ count }] = await inner.$queryRaw<{ count: number }[]>`
    select count(*)::int from pg_stat_activity where datname = current_database() and pg_backend_pid() = any(pg_blocking_pids(pid))`;
  return count;
}

test('three cancel, one of them does', async () => {
  const { id } = await book('acme', 'portrait', DAY, ada);
  expect((await Promise.all([1, 2, 3].map(() => cancel('acme', id)))).filter(Boolean)).toHaveLength(1);
});

test('none was booked yet', async () => {
  expect(await db.booking.count()).toBe(0);
  expect(await book('acme', 'portrait', DAY, bob)).toMatchObject({ status: 'PENDING' });
});
