import { Injectable, type OnModuleDestroy } from '@nestjs/common';
import { PrismaPg } from '@prisma/adapter-pg';
import { PrismaClient } from '../generated/client';

@Injectable()
export class PrismaService extends PrismaClient implements OnModuleDestroy {
  constructor() {
    // A schema of one's own in the database: by the URL's options, and told to Prisma, which names it in each statement.
    const schema = /search_path(?:=|%3D)(\w+)/i.exec(process.env.DATABASE_URL ?? '')?.[1];
    super({
      adapter: new PrismaPg({ connectionString: process.env.DATABASE_URL, max: 10 }, { schema }),
      // Prisma's own two and five seconds are short on a machine of CI.
      transactionOptions: { maxWait: 20_000, timeout: 30_000 },
    });
  }

  onModuleDestroy() {
    return this.$disconnect();
  }
}
