import { Migrator } from '@mikro-orm/migrations';
import { defineConfig } from '@mikro-orm/postgresql';
import { Customer, Order, OrderLine, Product, Shipment, Stock, Warehouse } from './entities';

export default defineConfig({
  clientUrl: process.env.DATABASE_URL,
  entities: [Customer, Order, OrderLine, Product, Shipment, Stock, Warehouse],
  extensions: [Migrator],
  migrations: { path: 'migrations', snapshot: false },
});
