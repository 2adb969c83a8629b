import { db } from './db';

/** A customer books a service for a day. Who comes first has the place: the slot's row is locked until the end. */
export function book(slug: string, service: string, day: string, email: string, addOns: string[] = []) {
  return db.$transaction(async (inner) => {
    const tenant = await inner.tenant.findUniqueOrThrow({ where: { slug } });
    const { id: serviceId } = await inner.service.findUniqueOrThrow({ where: { tenantId_slug: { tenantId: tenant.id, slug: service } } });
    const [slot] = await inner.$queryRaw<{ id: number; places: number }[]>`
      select id, places from "Slot" where "serviceId" = ${serviceId} and day = ${new Date(day)}::date for update`;
    if (!slot) throw new Error('there is no such slot');
    if ((await inner.booking.count({ where: { slotId: slot.id, status: { not: 'CANCELLED' } } })) >= slot.places) throw new Error('the slot is taken');
    const key = { tenantId: tenant.id, email };
    const customer = await inner.customer.upsert({ where: { tenantId_email: key }, create: key, update: {} });
    const chosen = await inner.addOn.findMany({ where: { serviceId, slug: { in: addOns } } });
    await inner.auditLog.create({ data: { action: 'booked', subject: email, tenantId: tenant.id } });
    return inner.booking.create({
      data: { tenantId: tenant.id, slotId: slot.id, customerId: customer.id, addOns: { create: chosen.map(({ id }) => ({ addOnId: id })) } },
      include: { addOns: true },
    });
  });
}

export async function cancel(slug: string, id: number) {
  const { count } = await db.booking.updateMany({ where: { id, tenant: { slug }, status: 'PENDING' }, data: { status: 'CANCELLED' } });
  return count === 1;
}
