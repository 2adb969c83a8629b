import type { PrismaClient } from '../generated/client';

/** A customer books a package for a day; the customer is made where there is none. */
export function book(client: PrismaClient, slug: string, email: string, day: string, addOns: string[] = []) {
  return client.$transaction(async (inner) => {
    const { id: packageId } = await inner.package.findUniqueOrThrow({ where: { slug, active: true } });
    const { id: customerId } = await inner.customer.upsert({ where: { email }, create: { email }, update: {} });
    const chosen = await inner.addOn.findMany({ where: { slug: { in: addOns }, packageId } });
    return inner.booking.create({
      data: { packageId, customerId, day: new Date(day), addOns: { create: chosen.map(({ id }) => ({ addOnId: id })) } },
      include: { addOns: true },
    });
  });
}

/** Handles an event once, however often and from wherever it is delivered. */
export async function deliver(client: PrismaClient, eventId: string) {
  const event = await client.webhookEvent.upsert({
    where: { eventId }, create: { eventId }, update: { attempts: { increment: 1 } },
  });
  const { count } = await client.webhookEvent.updateMany({ where: { id: event.id, handled: false }, data: { handled: true } });
  return count === 1;
}

export async function changePassword(client: PrismaClient, token: string) {
  const { count } = await client.passwordReset.updateMany({ where: { token, used: false }, data: { used: true } });
  return count === 1;
}
