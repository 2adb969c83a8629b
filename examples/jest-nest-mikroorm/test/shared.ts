// For comparison only (SHARED=1): one database for all workers, cleaned as everybody does it.
import { Client } from 'pg';

beforeEach(async () => {
  const client = new Client({ connectionString: process.env.DATABASE_URL });
  await client.connect();
  await client.query('TRUNCATE customers, products, warehouses, stock, orders, order_lines, shipments RESTART IDENTITY CASCADE');
  await client.end();
});
