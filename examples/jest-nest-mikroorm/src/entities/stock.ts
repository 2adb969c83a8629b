import { Check, Entity, ManyToOne, PrimaryKey, Property, Unique } from '@mikro-orm/core';
import type { Opt, Rel } from '@mikro-orm/core';
import { Product } from './product';
import { Warehouse } from './warehouse';

@Entity({ tableName: 'stock' })
@Unique({ properties: ['warehouse', 'product'] })
export class Stock {
  @PrimaryKey()
  id!: number;

  @ManyToOne(() => Warehouse)
  warehouse!: Rel<Warehouse>;

  @ManyToOne(() => Product)
  product!: Rel<Product>;

  @Check({ expression: 'quantity >= 0' })
  @Property()
  quantity: number & Opt = 0;
}
