import { expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { deliver } from '../src/bookings';

test('is handled', async () => {
  expect(await deliver(web, 'evt_1')).toBe(true);
  expect(await admin.webhookEvent.findMany()).toEqual([{ id: 1, eventId: 'evt_1', attempts: 1, handled: true }]);
});

test('is handled in the next test as well', async () => {
  expect(await deliver(jobs, 'evt_1')).toBe(true);
});

test('each event by itself', async () => {
  expect([await deliver(web, 'evt_1'), await deliver(web, 'evt_2')]).toEqual([true, true]);
  expect(await admin.webhookEvent.count()).toBe(2);
});

test('none yet', async () => {
  expect(await admin.webhookEvent.count()).toBe(0);
});
