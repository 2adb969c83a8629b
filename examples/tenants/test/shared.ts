// For comparison only (SHARED=1): one database for all workers, and the tenants of the tests deleted before each test, children before parents.
import { beforeEach } from 'vitest';
import { db } from '../src/db';

beforeEach(async () => {
  const found = await db.tenant.findMany({ where: { slug: { in: ['acme', 'globex'] } }, select: { id: true } });
  const mine = { tenantId: { in: found.map(({ id }) => id) } };
  await db.refund.deleteMany({ where: { payment: { booking: mine } } });
  await db.payment.deleteMany({ where: { booking: mine } });
  await db.bookingAddOn.deleteMany({ where: { booking: mine } });
  await db.booking.deleteMany({ where: mine });
  await db.slot.deleteMany({ where: { service: mine } });
  await db.addOn.deleteMany({ where: { service: mine } });
  await db.service.deleteMany({ where: mine });
  await db.customer.deleteMany({ where: mine });
  await db.auditLog.deleteMany({ where: mine });
  await db.member.deleteMany({ where: mine });
  await db.tenant.deleteMany({ where: { id: mine.tenantId } });
});
