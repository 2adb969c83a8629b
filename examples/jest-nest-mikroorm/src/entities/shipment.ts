import { Entity, ManyToOne, PrimaryKey, Property, Unique } from '@mikro-orm/core';
import type { Rel } from '@mikro-orm/core';
import { Order } from './order';
import { Warehouse } from './warehouse';

@Entity({ tableName: 'shipments' })
export class Shipment {
  @PrimaryKey()
  id!: number;

  @ManyToOne(() => Order)
  order!: Rel<Order>;

  @ManyToOne(() => Warehouse)
  warehouse!: Rel<Warehouse>;

  @Unique()
  @Property()
  tracking!: string;
}
