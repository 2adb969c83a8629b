import { ConflictException } from '@nestjs/common';
import { StockService } from '../src/stock.service';
import { Stock } from '../src/entities';
import { application } from './app';
import { product, stocked } from './factories';

const app = application();
const stock = () => app.get(StockService);

test('a level is the sum of all warehouses', async () => {
  const em = app.fork();
  const lamp = await product(em);
  for (const code of ['north', 'south', 'west']) await stocked(em, lamp, 10, code);
  expect(await app.within(() => stock().level('lamp'))).toBe(30);
});

test('nothing was ever received', async () => {
  await product(app.fork());
  expect(await app.within(() => stock().level('lamp'))).toBe(0);
});

test('five deliveries at once are five', async () => {
  await stocked(app.fork(), await product(app.fork()), 0);
  await Promise.all(Array.from({ length: 5 }, () => app.within(() => stock().receive('north', 'lamp', 2))));
  expect(await app.within(() => stock().level('lamp'))).toBe(10);
});

test('what is not there is not taken', async () => {
  await stocked(app.fork(), await product(app.fork()), 1);
  await expect(app.within(() => stock().receive('north', 'lamp', -2))).rejects.toThrow(ConflictException);
});

test('a move that fails moves nothing', async () => {
  const em = app.fork();
  const lamp = await product(em);
  await stocked(em, lamp, 1, 'north');
  await stocked(em, lamp, 1, 'south');
  await expect(app.within(() => stock().move('north', 'south', 'lamp', 2))).rejects.toThrow(ConflictException);
  expect(await app.fork().find(Stock, {})).toMatchObject([{ quantity: 1 }, { quantity: 1 }]);
});
