import { Stock } from '../src/entities';
import { application } from './app';
import { customer, product, stocked } from './factories';

const app = application();

async function placed() {
  const em = app.fork();
  await customer(em);
  await stocked(em, await product(em));
  await app.http().post('/orders').send({ email: 'ada@example.test', code: 'north', wanted: [{ sku: 'lamp', quantity: 2 }] }).expect(201);
}

test('an order is cancelled', async () => {
  await placed();
  const answer = await app.http().post('/orders/1/cancellation').send({ code: 'north' }).expect(200);
  expect(answer.body).toEqual({ id: 1, status: 'cancelled' });
});

test('what was ordered is in stock again', async () => {
  await placed();
  await app.http().post('/orders/1/cancellation').send({ code: 'north' }).expect(200);
  expect(await app.fork().find(Stock, {})).toMatchObject([{ quantity: 10 }]);
});

test('it is cancelled once', async () => {
  await placed();
  await app.http().post('/orders/1/cancellation').send({ code: 'north' }).expect(200);
  await app.http().post('/orders/1/cancellation').send({ code: 'north' }).expect(409);
});

test('one that is paid is not cancelled', async () => {
  await placed();
  await app.http().post('/orders/1/payment').expect(200);
  await app.http().post('/orders/1/cancellation').send({ code: 'north' }).expect(409);
  expect((await app.http().get('/orders/1').expect(200)).body.status).toBe('paid');
});
