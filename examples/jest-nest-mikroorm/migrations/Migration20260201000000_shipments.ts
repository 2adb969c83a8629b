import { Migration } from '@mikro-orm/migrations';

export class Migration20260201000000_shipments extends Migration {
  override up(): void {
    this.addSql(`create table "shipments" ("id" serial primary key, "order_id" int not null references "orders" ("id") on update cascade,
      "warehouse_id" int not null references "warehouses" ("id") on update cascade, "tracking" varchar(255) not null unique);`);
  }

  override down(): void {
    this.addSql('drop table "shipments";');
  }
}
