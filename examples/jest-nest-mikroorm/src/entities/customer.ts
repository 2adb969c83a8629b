import { Collection, Entity, OneToMany, PrimaryKey, Property, Unique } from '@mikro-orm/core';
import { Order } from './order';

@Entity({ tableName: 'customers' })
export class Customer {
  @PrimaryKey()
  id!: number;

  @Property()
  name!: string;

  @Unique()
  @Property()
  email!: string;

  @OneToMany(() => Order, (order) => order.customer)
  orders = new Collection<Order>(this);
}
