import { expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { deliver } from '../src/bookings';

test('a second delivery does nothing', async () => {
  expect([await deliver(web, 'evt_1'), await deliver(web, 'evt_1')]).toEqual([true, false]);
});

test('nor does one to another process', async () => {
  expect([await deliver(web, 'evt_1'), await deliver(jobs, 'evt_1')]).toEqual([true, false]);
});

test('attempts are counted', async () => {
  for (const client of [web, jobs, admin]) await deliver(client, 'evt_1');
  expect(await admin.webhookEvent.findUnique({ where: { eventId: 'evt_1' } })).toMatchObject({ id: 1, attempts: 3 });
});

test('from zero in each test', async () => {
  await deliver(web, 'evt_1');
  expect(await admin.webhookEvent.findUnique({ where: { eventId: 'evt_1' } })).toMatchObject({ id: 1, attempts: 1 });
});
