import { Migration } from '@mikro-orm/migrations';

export class Migration20260201000000_shipments extends Migration {
  override up(): void {
    this.addSql(`create table "shipments" ("id" serial primary key, "order_id" int not null, "warehouse_id" int not null, "tracking" varchar(255) not null);`);
    this.addSql(`alter table "shipments" add constraint "shipments_tracking_unique" unique ("tracking");`);
    this.addSql(`alter table "shipments" add constraint "shipments_order_id_foreign" foreign key ("order_id") references "orders" ("id") on update cascade;`);
    this.addSql(`alter table "shipments" add constraint "shipments_warehouse_id_foreign" foreign key ("warehouse_id") references "warehouses" ("id") on update cascade;`);
  }

  override down(): void {
    this.addSql('drop table "shipments";');
  }
}
