import { CustomersService } from '../src/customers.service';
import { Customer, Order } from '../src/entities';
import { application } from './app';
import { customer, order, product } from './factories';

const app = application();

test('one request has one object of a row', async () => {
  await customer(app.fork());
  const same = await app.within(async () => {
    const customers = app.get(CustomersService);
    return (await customers.byEmail('ada@example.test')) === (await customers.byEmail('ada@example.test'));
  });
  expect(same).toBe(true);
});

test('two forks have two', async () => {
  await customer(app.fork());
  const [one, other] = await Promise.all([app.fork().findOneOrFail(Customer, 1), app.fork().findOneOrFail(Customer, 1)]);
  expect(one).not.toBe(other);
  expect([one, other]).toMatchObject([{ id: 1, name: 'Ada' }, { id: 1, name: 'Ada' }]);
});

test('a fork sees what another one has written when it reads again', async () => {
  const em = app.fork();
  const ada = await customer(em);
  await app.within(() => app.get(CustomersService).rename('ada@example.test', 'Ada L.'));
  expect(ada.name).toBe('Ada');
  await em.refresh(ada);
  expect(ada.name).toBe('Ada L.');
});

test('what was not flushed is nowhere', async () => {
  const em = app.fork();
  em.create(Customer, { name: 'Ada', email: 'ada@example.test' });
  expect(await app.fork().count(Customer)).toBe(0);
});

test('a reference loads nothing until it is asked', async () => {
  await customer(app.fork());
  const ada = app.fork().getReference(Customer, 1, { wrapped: true });
  expect(ada.isInitialized()).toBe(false);
  expect((await ada.loadOrFail()).email).toBe('ada@example.test');
});

test('a collection is loaded into the same objects', async () => {
  const em = app.fork();
  const ada = await customer(em);
  await order(em, ada, await product(em));
  const found = await app.fork().findOneOrFail(Customer, ada.id, { populate: ['orders.customer'] });
  expect(found.orders.getItems()).toHaveLength(1);
  expect(found.orders[0]!.customer).toBe(found);
  expect(found.orders[0]).toBeInstanceOf(Order);
});
