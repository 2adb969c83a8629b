import type { EntityManager } from '@mikro-orm/core';
import { Customer, Order, OrderLine, Product, Stock, Warehouse } from '../src/entities';

// The same in every test and worker: nothing is made unique.
export async function customer(em: EntityManager, given: Partial<Pick<Customer, 'name' | 'email'>> = {}): Promise<Customer> {
  const made = em.create(Customer, { name: 'Ada', email: 'ada@example.test', ...given });
  await em.persistAndFlush(made);
  return made;
}

export async function product(em: EntityManager, given: Partial<Pick<Product, 'sku' | 'title' | 'priceCents'>> = {}): Promise<Product> {
  const made = em.create(Product, { sku: 'lamp', title: 'Lamp', priceCents: 2_000, ...given });
  await em.persistAndFlush(made);
  return made;
}

export async function stocked(em: EntityManager, of: Product, quantity = 10, code = 'north'): Promise<Warehouse> {
  const made = (await em.findOne(Warehouse, { code })) ?? em.create(Warehouse, { code });
  em.create(Stock, { warehouse: made, product: em.getReference(Product, of.id), quantity });
  await em.persistAndFlush(made);
  return made;
}

/** Takes rows that other factories made, whatever EntityManager they made them with. */
export async function order(em: EntityManager, by: Customer, of: Product, quantity = 2): Promise<Order> {
  const made = em.create(Order, { customer: em.getReference(Customer, by.id) });
  em.create(OrderLine, { order: made, product: em.getReference(Product, of.id), quantity, priceCents: of.priceCents });
  await em.persistAndFlush(made);
  return made;
}
