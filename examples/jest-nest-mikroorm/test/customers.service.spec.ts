import { ConflictException, NotFoundException } from '@nestjs/common';
import { CustomersService } from '../src/customers.service';
import { Customer } from '../src/entities';
import { application } from './app';
import { customer } from './factories';

const app = application();
const customers = () => app.get(CustomersService);

test('the first customer is number 1', async () => {
  expect(await app.within(() => customers().register('Ada', 'ada@example.test'))).toMatchObject({ id: 1 });
});

test('the second of one address is a conflict', async () => {
  await customer(app.fork());
  await expect(app.within(() => customers().register('Ada', 'ada@example.test'))).rejects.toThrow(ConflictException);
});

test('after a conflict the next one is registered', async () => {
  await customer(app.fork());
  await expect(app.within(() => customers().register('Ada', 'ada@example.test'))).rejects.toThrow(ConflictException);
  await app.within(() => customers().register('Eve', 'eve@example.test'));
  expect(await app.fork().count(Customer)).toBe(2);
});

test('nobody is found', async () => {
  await expect(app.within(() => customers().byEmail('ada@example.test'))).rejects.toThrow(NotFoundException);
});

test('a name is changed', async () => {
  await customer(app.fork());
  await app.within(() => customers().rename('ada@example.test', 'Ada L.'));
  expect(await app.fork().findOneOrFail(Customer, 1)).toMatchObject({ name: 'Ada L.' });
});
