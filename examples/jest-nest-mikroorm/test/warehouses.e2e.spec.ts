import { Stock } from '../src/entities';
import { application } from './app';
import { product, stocked } from './factories';

const app = application();

test('a warehouse is opened', async () => {
  const answer = await app.http().post('/warehouses').send({ code: 'north' }).expect(201);
  expect(answer.body).toEqual({ id: 1, code: 'north' });
});

test('a delivery is received', async () => {
  await product(app.fork());
  await app.http().post('/warehouses').send({ code: 'north' }).expect(201);
  const answer = await app.http().post('/warehouses/north/deliveries').send({ sku: 'lamp', quantity: 7 }).expect(201);
  expect(answer.body).toEqual({ code: 'north', sku: 'lamp', quantity: 7 });
});

test('a second delivery is added to the first', async () => {
  await product(app.fork());
  await app.http().post('/warehouses').send({ code: 'north' }).expect(201);
  for (const quantity of [7, 3]) await app.http().post('/warehouses/north/deliveries').send({ sku: 'lamp', quantity }).expect(201);
  expect(await app.fork().find(Stock, {})).toMatchObject([{ id: 1, quantity: 10 }]);
});

test('nothing is received where there is no warehouse', async () => {
  await product(app.fork());
  await app.http().post('/warehouses/north/deliveries').send({ sku: 'lamp', quantity: 7 }).expect(404);
});

test('stock is moved', async () => {
  const em = app.fork();
  const lamp = await product(em);
  await stocked(em, lamp, 10, 'north');
  await stocked(em, lamp, 1, 'south');
  await app.http().post('/warehouses/north/moves').send({ to: 'south', sku: 'lamp', quantity: 4 }).expect(204);
  expect(await app.fork().find(Stock, {}, { orderBy: { id: 'asc' } })).toMatchObject([{ quantity: 6 }, { quantity: 5 }]);
});

test('more than there is is not moved, and nothing of it', async () => {
  const em = app.fork();
  const lamp = await product(em);
  await stocked(em, lamp, 10, 'north');
  await stocked(em, lamp, 1, 'south');
  await app.http().post('/warehouses/north/moves').send({ to: 'south', sku: 'lamp', quantity: 11 }).expect(409);
  expect(await app.fork().find(Stock, {}, { orderBy: { id: 'asc' } })).toMatchObject([{ quantity: 10 }, { quantity: 1 }]);
});
