import { Check, Entity, ManyToOne, PrimaryKey, Property } from '@mikro-orm/core';
import type { Rel } from '@mikro-orm/core';
import { Order } from './order';
import { Product } from './product';

@Entity({ tableName: 'order_lines' })
export class OrderLine {
  @PrimaryKey()
  id!: number;

  @ManyToOne(() => Order, { deleteRule: 'cascade' })
  order!: Rel<Order>;

  @ManyToOne(() => Product)
  product!: Rel<Product>;

  @Check({ expression: 'quantity > 0' })
  @Property()
  quantity!: number;

  /** As it was when the order was placed. */
  @Property()
  priceCents!: number;
}
