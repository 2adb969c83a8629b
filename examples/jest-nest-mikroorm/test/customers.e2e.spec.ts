import { Customer } from '../src/entities';
import { application } from './app';
import { customer, order, product } from './factories';

const app = application();

test('a customer is registered', async () => {
  const answer = await app.http().post('/customers').send({ name: 'Ada', email: 'ada@example.test' }).expect(201);
  expect(answer.body).toEqual({ id: 1, name: 'Ada', email: 'ada@example.test' });
});

test('an address has one account', async () => {
  await app.http().post('/customers').send({ name: 'Ada', email: 'ada@example.test' }).expect(201);
  await app.http().post('/customers').send({ name: 'Eve', email: 'ada@example.test' }).expect(409);
  expect(await app.fork().count(Customer)).toBe(1);
});

test('a customer is shown, with the orders', async () => {
  const em = app.fork();
  await order(em, await customer(em), await product(em));
  const answer = await app.http().get('/customers/ada@example.test').expect(200);
  expect(answer.body).toMatchObject({ id: 1, name: 'Ada', orders: [{ id: 1, status: 'placed' }] });
});

test('one who is not there is not shown', async () => {
  await app.http().get('/customers/ada@example.test').expect(404);
});

test('a customer is renamed', async () => {
  await customer(app.fork());
  await app.http().patch('/customers/ada@example.test').send({ name: 'Ada L.' }).expect(200);
  expect(await app.fork().find(Customer, {})).toMatchObject([{ id: 1, name: 'Ada L.' }]);
});

test('a customer is forgotten', async () => {
  await customer(app.fork());
  await app.http().delete('/customers/ada@example.test').expect(204);
  expect(await app.fork().count(Customer)).toBe(0);
});

test('one with orders stays', async () => {
  const em = app.fork();
  await order(em, await customer(em), await product(em));
  await app.http().delete('/customers/ada@example.test').expect(409);
  expect(await app.fork().count(Customer)).toBe(1);
});
