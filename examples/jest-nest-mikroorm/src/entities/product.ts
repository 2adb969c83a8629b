import { Check, Entity, PrimaryKey, Property, Unique } from '@mikro-orm/core';
import type { Opt } from '@mikro-orm/core';

@Entity({ tableName: 'products' })
export class Product {
  @PrimaryKey()
  id!: number;

  @Unique()
  @Property()
  sku!: string;

  @Property()
  title!: string;

  @Check({ expression: 'price_cents > 0' })
  @Property()
  priceCents!: number;

  @Property()
  retired: boolean & Opt = false;
}
