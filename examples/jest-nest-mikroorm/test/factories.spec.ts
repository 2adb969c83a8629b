import { Customer, Order, OrderLine } from '../src/entities';
import { OrdersService } from '../src/orders.service';
import { application } from './app';
import { customer, order, product, stocked } from './factories';

const app = application();
const orders = () => app.get(OrdersService);

test('a row of one operation is referred to by the next ones', async () => {
  const ada = await customer(app.fork());
  const lamp = await product(app.fork());
  const made = await order(app.fork(), ada, lamp);
  expect(await app.fork().find(OrderLine, { order: { customer: ada.id } })).toMatchObject([{ id: 1, order: { id: made.id } }]);
});

test('from the order to the parcel, each step in a request of its own', async () => {
  const lamp = await product(app.fork());
  await stocked(app.fork(), lamp);
  const made = await order(app.fork(), await customer(app.fork()), lamp);
  await app.within(() => orders().pay(made.id));
  await app.within(() => orders().ship(made.id, 'north', 'PARCEL-1'));
  expect(await app.within(() => orders().byId(made.id))).toMatchObject({ status: 'shipped' });
});

test('a row is committed: HTTP sees it', async () => {
  const made = await order(app.fork(), await customer(app.fork()), await product(app.fork()));
  expect((await app.http().get(`/orders/${made.id}`).expect(200)).body).toMatchObject({ id: 1, email: 'ada@example.test' });
});

test('a transaction refers to rows of the factories', async () => {
  const ada = await customer(app.fork());
  const lamp = await product(app.fork());
  await app.fork().transactional(async (em) => {
    await order(em, ada, lamp);
    await order(em, ada, lamp);
  });
  expect(await app.fork().count(Order, { customer: ada.id })).toBe(2);
});

test('one that fails leaves them, and nothing of its own', async () => {
  const ada = await customer(app.fork());
  const lamp = await product(app.fork());
  const failing = app.fork().transactional(async (em) => {
    await order(em, ada, lamp);
    throw new Error('no');
  });
  await expect(failing).rejects.toThrow('no');
  expect(await Promise.all([app.fork().count(Customer), app.fork().count(Order)])).toEqual([1, 0]);
});

test('twenty customers, numbered from 1', async () => {
  for (let n = 1; n <= 20; n += 1) expect((await customer(app.fork(), { email: `ada${n}@example.test` })).id).toBe(n);
});
