// SCHEMA=1: a schema for each worker inside of its database, named by the URL's options, as suites have it that were made for one database.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Client } from 'pg';
import { afterAll, beforeAll, beforeEach } from 'vitest';

const schema = `test_w${process.env.VITEST_POOL_ID}_${randomUUID().slice(0, 8)}`;
const url = new URL(process.env.DATABASE_URL!);
url.searchParams.set('options', `-c search_path=${schema}`);
process.env.DATABASE_URL = url.href.replace('+', '%20');

const client = new Client({ connectionString: process.env.DATABASE_URL });

beforeAll(async () => {
  await client.connect();
  await client.query(`CREATE SCHEMA ${schema}`);
  await client.query(readFileSync('prisma/migrations/20260101000000_forum/migration.sql', 'utf8'));
});
beforeEach(async () => {
  await client.query('TRUNCATE users, questions, answers, comments, attachments RESTART IDENTITY CASCADE');
});
afterAll(async () => {
  await client.query(`DROP SCHEMA ${schema} CASCADE`);
  await client.end();
});
