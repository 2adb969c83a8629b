import { Migration } from '@mikro-orm/migrations';

export class Migration20260101000000_orders extends Migration {
  override up(): void {
    this.addSql('create table "customers" ("id" serial primary key, "name" varchar(255) not null, "email" varchar(255) not null unique);');
    this.addSql('create table "products" ("id" serial primary key, "sku" varchar(255) not null unique, "title" varchar(255) not null, "price_cents" int not null check ("price_cents" > 0), "retired" boolean not null default false);');
    this.addSql('create table "warehouses" ("id" serial primary key, "code" varchar(255) not null unique);');
    this.addSql(`create table "stock" ("id" serial primary key, "warehouse_id" int not null references "warehouses" ("id") on update cascade,
      "product_id" int not null references "products" ("id") on update cascade, "quantity" int not null default 0 check ("quantity" >= 0), unique ("warehouse_id", "product_id"));`);
    this.addSql(`create table "orders" ("id" serial primary key, "customer_id" int not null references "customers" ("id") on update cascade,
      "status" varchar(255) not null default 'placed');`);
    this.addSql(`create table "order_lines" ("id" serial primary key, "order_id" int not null references "orders" ("id") on update cascade on delete cascade,
      "product_id" int not null references "products" ("id") on update cascade, "quantity" int not null check ("quantity" > 0), "price_cents" int not null);`);
  }

  override down(): void {
    this.addSql('drop table "order_lines", "orders", "stock", "warehouses", "products", "customers";');
  }
}
