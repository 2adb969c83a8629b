import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { deliver } from '../src/bookings';

beforeEach(async () => {
  await web.webhookEvent.createMany({ data: ['evt_1', 'evt_2', 'evt_3'].map((eventId) => ({ eventId })) });
});

test('what was not handled is tried again', async () => {
  const waiting = await jobs.webhookEvent.findMany({ where: { handled: false }, orderBy: { id: 'asc' } });
  expect(await Promise.all(waiting.map(({ eventId }) => deliver(jobs, eventId)))).toEqual([true, true, true]);
});

test('until nothing is left', async () => {
  for (const eventId of ['evt_1', 'evt_2', 'evt_3']) await deliver(jobs, eventId);
  expect(await web.webhookEvent.count({ where: { handled: false } })).toBe(0);
});

test('all three are waiting', async () => {
  expect(await web.webhookEvent.count({ where: { handled: false } })).toBe(3);
});

test('those that were tried too often are dropped', async () => {
  await admin.webhookEvent.update({ where: { eventId: 'evt_2' }, data: { attempts: 9 } });
  expect(await admin.webhookEvent.deleteMany({ where: { attempts: { gt: 5 } } })).toEqual({ count: 1 });
});
