import { beforeEach, expect, test } from 'vitest';
import { book } from '../src/bookings';
import { db } from '../src/db';
import { pay } from '../src/payments';
import { ada, DAY, tenants } from './data';

let acme: number;
beforeEach(async () => void ({ acme } = await tenants()));

const lines = (slug: string) =>
  db.auditLog.findMany({ where: { tenant: { slug } }, orderBy: { id: 'asc' }, select: { action: true, subject: true } });

test('begins with the tenant', async () => {
  expect(await lines('acme')).toEqual([{ action: 'opened', subject: 'acme' }]);
});

test('has what happened, in order', async () => {
  const { id } = await book('acme', 'portrait', DAY, ada);
  await pay(id, 'ref-1', 100_00);
  expect((await lines('acme')).map(({ action }) => action)).toEqual(['opened', 'booked', 'paid']);
});

test('has nothing of the other\'s', async () => {
  await book('globex', 'portrait', DAY, ada);
  expect(await lines('globex')).toEqual([{ action: 'opened', subject: 'globex' }, { action: 'booked', subject: ada }]);
  expect(await lines('acme')).toHaveLength(1);
});

test('has nothing of what was rolled back', async () => {
  const { id } = await book('acme', 'portrait', DAY, ada);
  await expect(pay(id + 1, 'ref-1', 1_00)).rejects.toThrow('Foreign key constraint');
  expect(await lines('acme')).toHaveLength(2);
});

const looked = async () => {
  const { id: memberId } = await db.member.findUniqueOrThrow({ where: { email: 'owner@acme.example' } });
  await db.auditLog.create({ data: { action: 'looked', subject: 'report', tenantId: acme, memberId } });
  return memberId;
};

test('can say who it was', async () => {
  const memberId = await looked();
  expect(await db.auditLog.findFirst({ where: { member: { email: 'owner@acme.example' } } })).toMatchObject({ action: 'looked', memberId });
});

test('holds who is named in it', async () => {
  const memberId = await looked();
  await expect(db.$executeRaw`delete from "Member" where id = ${memberId}`).rejects.toThrow('AuditLog_memberId_fkey');
});
