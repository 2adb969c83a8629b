import { expect, test } from 'vitest';
import { db } from '../src/db';
import { open } from '../src/tenants';

test('a tenant has an owner', async () => {
  expect(await open('acme', 'owner@acme.example')).toMatchObject({ slug: 'acme', name: 'ACME', members: [{ email: 'owner@acme.example', role: 'OWNER' }] });
});

test('the next test opens it again', async () => {
  expect(await open('acme', 'owner@acme.example')).toMatchObject({ slug: 'acme' });
});

test('a slug is taken once', async () => {
  await open('acme', 'owner@acme.example');
  await expect(open('acme', 'other@acme.example')).rejects.toThrow('Unique constraint');
});

test('nobody owns two', async () => {
  await open('acme', 'owner@acme.example');
  await expect(open('globex', 'owner@acme.example')).rejects.toThrow('Unique constraint');
  expect(await db.tenant.count()).toBe(1);
});

test('three at once, one of them gets the slug', async () => {
  const done = await Promise.allSettled([1, 2, 3].map((n) => open('acme', `owner${n}@acme.example`)));
  expect(done.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
  expect([await db.tenant.count(), await db.member.count(), await db.auditLog.count()]).toEqual([1, 1, 1]);
});

test('there is none yet', async () => {
  expect(await db.tenant.findMany()).toEqual([]);
});
