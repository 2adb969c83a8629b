import { Order, Stock } from '../src/entities';
import { application } from './app';
import { customer, product, stocked } from './factories';

const app = application();
const wanted = { email: 'ada@example.test', code: 'north', wanted: [{ sku: 'lamp', quantity: 2 }] };

async function shop() {
  const em = app.fork();
  await customer(em);
  await stocked(em, await product(em));
}

test('an order is placed', async () => {
  await shop();
  const answer = await app.http().post('/orders').send(wanted).expect(201);
  expect(answer.body).toEqual({ id: 1, status: 'placed' });
});

test('what is ordered leaves the stock', async () => {
  await shop();
  await app.http().post('/orders').send(wanted).expect(201);
  expect(await app.fork().find(Stock, {})).toMatchObject([{ quantity: 8 }]);
});

test('an order is shown with its lines and total', async () => {
  await shop();
  await app.http().post('/orders').send(wanted).expect(201);
  const answer = await app.http().get('/orders/1').expect(200);
  expect(answer.body).toMatchObject({ email: 'ada@example.test', lines: [{ sku: 'lamp', quantity: 2 }], totalCents: 4_000 });
});

test('the price of an order is that of its day', async () => {
  await shop();
  await app.http().post('/orders').send(wanted).expect(201);
  await app.http().put('/products/lamp/price').send({ priceCents: 9_999 }).expect(200);
  expect((await app.http().get('/orders/1').expect(200)).body.totalCents).toBe(4_000);
});

test('more than is in stock is not ordered', async () => {
  await shop();
  await app.http().post('/orders').send({ ...wanted, wanted: [{ sku: 'lamp', quantity: 11 }] }).expect(409);
  expect(await app.fork().count(Order)).toBe(0);
});

test('nobody orders for a customer who is not there', async () => {
  await stocked(app.fork(), await product(app.fork()));
  await app.http().post('/orders').send(wanted).expect(404);
});

test('orders of a customer are listed', async () => {
  await shop();
  for (let n = 0; n < 3; n += 1) await app.http().post('/orders').send(wanted).expect(201);
  const answer = await app.http().get('/orders?email=ada@example.test').expect(200);
  expect(answer.body.map(({ id }: Order) => id)).toEqual([1, 2, 3]);
});
