import { Collection, Entity, OneToMany, PrimaryKey, Property, Unique } from '@mikro-orm/core';
import { Stock } from './stock';

@Entity({ tableName: 'warehouses' })
export class Warehouse {
  @PrimaryKey()
  id!: number;

  @Unique()
  @Property()
  code!: string;

  @OneToMany(() => Stock, (stock) => stock.warehouse)
  stock = new Collection<Stock>(this);
}
