import { db } from '../src/db';
import { offer } from '../src/services';
import { open } from '../src/tenants';

export const DAY = '2027-05-01';
export const ada = 'ada@example.org';
export const bob = 'bob@example.org';

/** What most tests begin with: two tenants that sell the same, with the same slugs and addresses everywhere. Returns their ids. */
export const tenants = async () => ({ acme: await tenant('acme'), globex: await tenant('globex') });

async function tenant(slug: string) {
  const { id } = await open(slug, `owner@${slug}.example`);
  const { id: serviceId } = await offer(id, 'portrait', 100_00, { prints: 20_00, frame: 35_00 });
  await db.slot.createMany({ data: [{ serviceId, day: new Date(DAY) }, { serviceId, day: new Date('2027-05-02'), places: 2 }] });
  return id;
}
