import { Entity, ManyToOne, PrimaryKey, Property } from '@mikro-orm/core';
import type { Rel } from '@mikro-orm/core';
import { Order } from './order';
import { Product } from './product';

@Entity({ tableName: 'order_lines' })
export class OrderLine {
  @PrimaryKey()
  id!: number;

  @ManyToOne(() => Order)
  order!: Rel<Order>;

  @ManyToOne(() => Product)
  product!: Rel<Product>;

  @Property()
  quantity!: number;

  /** As it was when the order was placed. */
  @Property()
  priceCents!: number;
}
