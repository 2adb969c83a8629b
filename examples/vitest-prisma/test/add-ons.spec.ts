import { beforeEach, expect, test } from 'vitest';
import { admin, jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(catalogue);

test('belong to one package', async () => {
  const booking = await book(web, 'weekend', 'ada@example.org', '2027-05-01', ['flowers']);
  expect(booking.addOns).toEqual([]);
});

test('are counted by package', async () => {
  const found = await jobs.package.findMany({ include: { _count: { select: { addOns: true } } }, orderBy: { id: 'asc' } });
  expect(found.map(({ _count }) => _count.addOns)).toEqual([2, 0]);
});

test('are not deleted while booked', async () => {
  await book(web, 'elopement', 'ada@example.org', '2027-05-01', ['flowers']);
  await expect(admin.addOn.delete({ where: { slug: 'flowers' } })).rejects.toThrow('Foreign key constraint');
});

test('move to another package', async () => {
  await admin.addOn.update({ where: { slug: 'flowers' }, data: { packageId: 2 } });
  expect((await book(web, 'weekend', 'ada@example.org', '2027-05-01', ['flowers'])).addOns).toEqual([{ bookingId: 1, addOnId: 1 }]);
});
