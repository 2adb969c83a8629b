import { PrismaPg } from '@prisma/adapter-pg';
import { PrismaClient } from '../generated/client';

const kept = globalThis as { db?: PrismaClient };

/** The application's one client: its pool stays connected as long as the process lives. */
export const db = (kept.db ??= new PrismaClient({
  adapter: new PrismaPg(
    { connectionString: process.env.DATABASE_URL, application_name: 'app', max: 3, idleTimeoutMillis: 0 },
    // Statements have names, so that each session prepares them once.
    { statementNameGenerator: ({ sql }) => `q${hash(sql)}` },
  ),
  // Prisma's own two and five seconds are short on a machine of CI.
  transactionOptions: { maxWait: 20_000, timeout: 30_000 },
}));

function hash(text: string) {
  let found = 0;
  for (const letter of text) found = (Math.imul(found, 31) + letter.codePointAt(0)!) >>> 0;
  return `${text.length}_${found}`;
}
