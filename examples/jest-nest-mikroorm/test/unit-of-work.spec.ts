import { UniqueConstraintViolationException } from '@mikro-orm/core';
import { Customer, Order, OrderLine } from '../src/entities';
import { application } from './app';
import { customer, order, product } from './factories';

const app = application();

test('a flush writes all of it, in the right order', async () => {
  const em = app.fork();
  const lamp = await product(em);
  const ada = em.create(Customer, { name: 'Ada', email: 'ada@example.test' });
  em.create(OrderLine, { order: em.create(Order, { customer: ada }), product: lamp, quantity: 1, priceCents: 1 });
  await em.flush();
  expect(await app.fork().count(OrderLine, { order: { customer: { email: 'ada@example.test' } } })).toBe(1);
});

test('a flush that fails writes nothing', async () => {
  await customer(app.fork(), { email: 'eve@example.test' });
  const em = app.fork();
  for (const email of ['ada@example.test', 'eve@example.test']) em.create(Customer, { name: 'Ada', email });
  await expect(em.flush()).rejects.toThrow(UniqueConstraintViolationException);
  expect(await app.fork().find(Customer, {})).toMatchObject([{ email: 'eve@example.test' }]);
});

test('lines go with their order', async () => {
  const em = app.fork();
  const made = await order(em, await customer(em), await product(em));
  await em.removeAndFlush(made);
  expect(await app.fork().count(OrderLine)).toBe(0);
});

test('a line that is taken out of its order is gone', async () => {
  const em = app.fork();
  const made = await order(em, await customer(em), await product(em));
  made.lines.removeAll();
  await em.flush();
  expect(await Promise.all([app.fork().count(Order), app.fork().count(OrderLine)])).toEqual([1, 0]);
});

test('a nested transaction that fails is undone alone', async () => {
  await app.fork().transactional(async (em) => {
    await customer(em);
    await em.transactional(async (inner) => {
      await customer(inner, { email: 'eve@example.test' });
      throw new Error('no');
    }).catch(() => undefined);
  });
  expect(await app.fork().find(Customer, {})).toMatchObject([{ email: 'ada@example.test' }]);
});
