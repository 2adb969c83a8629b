import { PrismaPg } from '@prisma/adapter-pg';
import { PrismaClient } from '../generated/client';

/** Each part of the application has a client, with a pool of its own. */
function client() {
  return new PrismaClient({
    adapter: new PrismaPg({ connectionString: process.env.DATABASE_URL, max: 3 }),
    // Prisma's own two and five seconds are short on a machine of CI.
    transactionOptions: { maxWait: 20_000, timeout: 30_000 },
  });
}

export const web = client();
export const jobs = client();
export const admin = client();

export const close = () => Promise.all([web.$disconnect(), jobs.$disconnect(), admin.$disconnect()]);
