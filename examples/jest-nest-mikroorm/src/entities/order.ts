import { Cascade, Collection, Entity, ManyToOne, OneToMany, PrimaryKey, Property } from '@mikro-orm/core';
import type { Opt, Rel } from '@mikro-orm/core';
import { Customer } from './customer';
import { OrderLine } from './order-line';
import { Shipment } from './shipment';

@Entity({ tableName: 'orders' })
export class Order {
  @PrimaryKey()
  id!: number;

  @ManyToOne(() => Customer)
  customer!: Rel<Customer>;

  @Property({ type: 'string' })
  status: ('placed' | 'paid' | 'shipped' | 'cancelled') & Opt = 'placed';

  @OneToMany(() => OrderLine, (line) => line.order, { cascade: [Cascade.ALL], orphanRemoval: true })
  lines = new Collection<OrderLine>(this);

  @OneToMany(() => Shipment, (shipment) => shipment.order)
  shipments = new Collection<Shipment>(this);
}
