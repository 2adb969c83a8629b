// For comparison only (SHARED=1): one database for all workers, cleaned as everybody does it.
import { Client } from 'pg';
import { beforeEach } from 'vitest';

beforeEach(async () => {
  const client = new Client({ connectionString: process.env.DATABASE_URL });
  await client.connect();
  await client.query('TRUNCATE users, questions, answers, comments, attachments RESTART IDENTITY CASCADE');
  await client.end();
});
