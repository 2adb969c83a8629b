import { LockMode } from '@mikro-orm/core';
import { EntityManager } from '@mikro-orm/postgresql';
import { ConflictException, Injectable, NotFoundException } from '@nestjs/common';
import { Product, Stock, Warehouse } from './entities';

@Injectable()
export class StockService {
  constructor(private readonly em: EntityManager) {}

  async open(code: string): Promise<Warehouse> {
    const warehouse = this.em.create(Warehouse, { code });
    await this.em.persistAndFlush(warehouse);
    return warehouse;
  }

  receive(code: string, sku: string, quantity: number): Promise<Stock> {
    return this.em.transactional((em) => this.change(em, code, sku, quantity));
  }

  /** All of it or nothing. */
  async move(from: string, to: string, sku: string, quantity: number): Promise<void> {
    await this.em.transactional(async (em) => {
      await this.change(em, to, sku, quantity);
      await this.change(em, from, sku, -quantity);
    });
  }

  async level(sku: string): Promise<number> {
    const rows = await this.em.find(Stock, { product: { sku } });
    return rows.reduce((sum, { quantity }) => sum + quantity, 0);
  }

  async change(em: EntityManager, code: string, sku: string, by: number): Promise<Stock> {
    const warehouse = await em.findOne(Warehouse, { code });
    const product = await em.findOne(Product, { sku });
    if (!warehouse || !product) throw new NotFoundException(warehouse ? sku : code);
    const row = await em.findOne(Stock, { warehouse, product }, { lockMode: LockMode.PESSIMISTIC_WRITE });
    const stock = row ?? em.create(Stock, { warehouse, product });
    if (stock.quantity + by < 0) throw new ConflictException(`${code} has ${stock.quantity} of ${sku}`);
    stock.quantity += by;
    await em.persistAndFlush(stock);
    return stock;
  }
}
