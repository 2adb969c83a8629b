import { db } from './db';

/** A tenant with its owner; both or none. */
export function open(slug: string, owner: string) {
  return db.tenant.create({
    data: { slug, name: slug.toUpperCase(), members: { create: { email: owner } }, audit: { create: { action: 'opened', subject: slug } } },
    include: { members: true },
  });
}

/** Everything that belongs to a tenant goes, children before parents. */
export function close(slug: string) {
  return db.$transaction(async (inner) => {
    const { id } = await inner.tenant.findUniqueOrThrow({ where: { slug } });
    const mine = { tenantId: id };
    await inner.refund.deleteMany({ where: { payment: { booking: mine } } });
    await inner.payment.deleteMany({ where: { booking: mine } });
    await inner.bookingAddOn.deleteMany({ where: { booking: mine } });
    await inner.booking.deleteMany({ where: mine });
    await inner.slot.deleteMany({ where: { service: mine } });
    await inner.addOn.deleteMany({ where: { service: mine } });
    await inner.service.deleteMany({ where: mine });
    await inner.customer.deleteMany({ where: mine });
    await inner.auditLog.deleteMany({ where: mine });
    await inner.member.deleteMany({ where: mine });
    await inner.tenant.delete({ where: { id } });
  });
}
