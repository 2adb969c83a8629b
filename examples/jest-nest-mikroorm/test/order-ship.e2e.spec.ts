import { Shipment } from '../src/entities';
import { application } from './app';
import { customer, order, product, stocked } from './factories';

const app = application();
const parcel = { code: 'north', tracking: 'PARCEL-1' };

async function ordered() {
  const em = app.fork();
  const lamp = await product(em);
  await stocked(em, lamp);
  return order(em, await customer(em), lamp);
}

test('an order that is paid is shipped', async () => {
  const { id } = await ordered();
  await app.http().post(`/orders/${id}/payment`).expect(200);
  const answer = await app.http().post(`/orders/${id}/shipments`).send(parcel).expect(201);
  expect(answer.body).toEqual({ id: 1, order: 1, tracking: 'PARCEL-1' });
});

test('one that is not paid is not', async () => {
  const { id } = await ordered();
  await app.http().post(`/orders/${id}/shipments`).send(parcel).expect(409);
  expect(await app.fork().count(Shipment)).toBe(0);
});

test('it shows its parcels', async () => {
  const { id } = await ordered();
  await app.http().post(`/orders/${id}/payment`).expect(200);
  await app.http().post(`/orders/${id}/shipments`).send(parcel).expect(201);
  expect((await app.http().get(`/orders/${id}`).expect(200)).body).toMatchObject({ status: 'shipped', shipments: ['PARCEL-1'] });
});

test('a warehouse that is not there ships nothing', async () => {
  const { id } = await ordered();
  await app.http().post(`/orders/${id}/payment`).expect(200);
  await app.http().post(`/orders/${id}/shipments`).send({ ...parcel, code: 'south' }).expect(404);
  expect((await app.http().get(`/orders/${id}`).expect(200)).body.status).toBe('paid');
});
