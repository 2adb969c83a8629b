import { beforeEach, expect, test } from 'vitest';
import { jobs, web } from '../src/clients';
import { book } from '../src/bookings';
import { catalogue } from './data';

beforeEach(catalogue);

async function total(id: number) {
  const { package: bought, addOns } = await jobs.booking.findUniqueOrThrow({
    where: { id }, include: { package: true, addOns: { include: { addOn: true } } },
  });
  return addOns.reduce((sum, { addOn }) => sum + addOn.priceCents, bought.priceCents);
}

test.each([
  [[], 100_000],
  [['flowers'], 105_000],
  [['flowers', 'photos'], 125_000],
  [['flowers', 'cake'], 105_000],
])('with %j', async (addOns, expected) => {
  const { id } = await book(web, 'elopement', 'ada@example.org', '2027-05-01', addOns);
  expect(id).toBe(1);
  expect(await total(id)).toBe(expected);
});
