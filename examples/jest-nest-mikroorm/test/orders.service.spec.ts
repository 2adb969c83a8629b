import { ConflictException, NotFoundException } from '@nestjs/common';
import { Order, OrderLine, Stock } from '../src/entities';
import { OrdersService } from '../src/orders.service';
import { application } from './app';
import { customer, order, product, stocked } from './factories';

const app = application();
const orders = () => app.get(OrdersService);
const place = (quantity: number, sku = 'lamp') => app.within(() => orders().place('ada@example.test', 'north', [{ sku, quantity }]));

async function shop(quantity = 10) {
  const em = app.fork();
  await customer(em);
  await stocked(em, await product(em), quantity);
}

test('an order has its customer and lines', async () => {
  await shop();
  const { id } = await place(2);
  expect(await app.fork().find(OrderLine, { order: id })).toMatchObject([{ id: 1, quantity: 2, priceCents: 2_000 }]);
});

test('the last lamp is sold once', async () => {
  await shop(1);
  const done = await Promise.allSettled([place(1), place(1)]);
  expect(done.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  expect(await app.fork().count(Order)).toBe(1);
});

test('of two lines none is kept where the second cannot be had', async () => {
  await shop();
  await product(app.fork(), { sku: 'chair' });
  const wanted = [{ sku: 'lamp', quantity: 1 }, { sku: 'chair', quantity: 1 }];
  await expect(app.within(() => orders().place('ada@example.test', 'north', wanted))).rejects.toThrow(ConflictException);
  expect(await app.fork().find(Stock, { quantity: { $gt: 0 } })).toMatchObject([{ quantity: 10 }]);
});

test('a total is that of all lines', async () => {
  await shop();
  await stocked(app.fork(), await product(app.fork(), { sku: 'chair', priceCents: 500 }));
  const wanted = [{ sku: 'lamp', quantity: 1 }, { sku: 'chair', quantity: 3 }];
  const { id } = await app.within(() => orders().place('ada@example.test', 'north', wanted));
  expect(await app.within(() => orders().total(id))).toBe(3_500);
});

test('an order is paid once', async () => {
  const em = app.fork();
  const { id } = await order(em, await customer(em), await product(em));
  await app.within(() => orders().pay(id));
  await expect(app.within(() => orders().pay(id))).rejects.toThrow(ConflictException);
});

test('no order has this number yet', async () => {
  await expect(app.within(() => orders().byId(1))).rejects.toThrow(NotFoundException);
});
