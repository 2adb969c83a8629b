import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(catalogue);

const retire = () => admin.package.update({ where: { slug: 'elopement' }, data: { active: false } });

test('it cannot be booked any more', async () => {
  await retire();
  await expect(book(web, 'elopement', 'ada@example.org', '2027-05-01')).rejects.toThrow('No record was found');
});

test('bookings that were made stay', async () => {
  await book(web, 'elopement', 'ada@example.org', '2027-05-01');
  await retire();
  expect(await jobs.booking.count({ where: { package: { active: false } } })).toBe(1);
});

test('the other can be booked', async () => {
  await retire();
  expect((await book(web, 'weekend', 'ada@example.org', '2027-05-01')).id).toBe(1);
});

test('it is sold again', async () => {
  expect(await web.package.count({ where: { active: true } })).toBe(2);
});
