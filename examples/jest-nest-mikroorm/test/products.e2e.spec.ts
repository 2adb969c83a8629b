import { Product } from '../src/entities';
import { application } from './app';
import { product, stocked } from './factories';

const app = application();

test('a product is added', async () => {
  const answer = await app.http().post('/products').send({ sku: 'lamp', title: 'Lamp', priceCents: 2_000 }).expect(201);
  expect(answer.body).toMatchObject({ id: 1, sku: 'lamp', retired: false });
});

test('a number is given once', async () => {
  await product(app.fork());
  await app.http().post('/products').send({ sku: 'lamp', title: 'Lamp', priceCents: 2_000 }).expect(409);
});

test('a price below zero is refused by the database', async () => {
  await app.http().post('/products').send({ sku: 'lamp', title: 'Lamp', priceCents: -1 }).expect(500);
  expect(await app.fork().count(Product)).toBe(0);
});

test('products are listed by number', async () => {
  const em = app.fork();
  for (const sku of ['lamp', 'chair', 'desk']) await product(em, { sku });
  const answer = await app.http().get('/products').expect(200);
  expect(answer.body.map(({ sku }: Product) => sku)).toEqual(['chair', 'desk', 'lamp']);
});

test('a product is shown with what is in stock', async () => {
  const em = app.fork();
  const lamp = await product(em);
  await stocked(em, lamp, 10, 'north');
  await stocked(em, lamp, 5, 'south');
  const answer = await app.http().get('/products/lamp').expect(200);
  expect(answer.body).toEqual({ sku: 'lamp', title: 'Lamp', priceCents: 2_000, level: 15 });
});

test('a price is changed', async () => {
  await product(app.fork());
  await app.http().put('/products/lamp/price').send({ priceCents: 2_500 }).expect(200);
  expect(await app.fork().findOneOrFail(Product, 1)).toMatchObject({ priceCents: 2_500 });
});

test('what is retired is not listed', async () => {
  await product(app.fork());
  await app.http().delete('/products/lamp').expect(204);
  expect((await app.http().get('/products').expect(200)).body).toEqual([]);
  expect(await app.fork().count(Product)).toBe(1);
});
