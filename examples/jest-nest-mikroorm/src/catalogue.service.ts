import { UniqueConstraintViolationException } from '@mikro-orm/core';
import { EntityManager } from '@mikro-orm/postgresql';
import { ConflictException, Injectable, NotFoundException } from '@nestjs/common';
import { Product } from './entities';

@Injectable()
export class CatalogueService {
  constructor(private readonly em: EntityManager) {}

  async add(sku: string, title: string, priceCents: number): Promise<Product> {
    const product = this.em.create(Product, { sku, title, priceCents });
    try {
      await this.em.persistAndFlush(product);
    } catch (error) {
      if (error instanceof UniqueConstraintViolationException) throw new ConflictException(`${sku} is there`);
      throw error;
    }
    return product;
  }

  list(): Promise<Product[]> {
    return this.em.find(Product, { retired: false }, { orderBy: { sku: 'asc' } });
  }

  async bySku(sku: string): Promise<Product> {
    const found = await this.em.findOne(Product, { sku });
    if (!found) throw new NotFoundException(sku);
    return found;
  }

  async price(sku: string, priceCents: number): Promise<Product> {
    const product = await this.bySku(sku);
    product.priceCents = priceCents;
    await this.em.flush();
    return product;
  }

  async retire(sku: string): Promise<void> {
    const product = await this.bySku(sku);
    product.retired = true;
    await this.em.flush();
  }
}
