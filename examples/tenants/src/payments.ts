import { db } from './db';

export function pay(bookingId: number, reference: string, cents: number) {
  return db.$transaction(async (inner) => {
    const payment = await inner.payment.create({ data: { bookingId, reference, cents } });
    const { tenantId } = await inner.booking.update({ where: { id: bookingId }, data: { status: 'PAID' } });
    await inner.auditLog.create({ data: { action: 'paid', subject: reference, tenantId } });
    return payment;
  });
}

/** Some of a payment goes back, and never more than was paid; whoever is disturbed by another refund tries again. */
export async function refund(reference: string, cents: number, tries = 5): Promise<number> {
  try {
    return await db.$transaction(
      async (inner) => {
        const payment = await inner.payment.findUniqueOrThrow({ where: { reference }, include: { refunds: true } });
        const left = payment.refunds.reduce((sum, made) => sum - made.cents, payment.cents);
        if (cents > left) throw new Error(`only ${left} are left`);
        await inner.refund.create({ data: { paymentId: payment.id, cents } });
        return left - cents;
      },
      { isolationLevel: 'Serializable' },
    );
  } catch (error) {
    if ((error as { code?: string }).code !== 'P2034' || tries < 2) throw error;
    return refund(reference, cents, tries - 1);
  }
}
