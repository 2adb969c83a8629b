import { Migration } from '@mikro-orm/migrations';

export class Migration20260101000000_orders extends Migration {
  override up(): void {
    this.addSql(`create table "customers" ("id" serial primary key, "name" varchar(255) not null, "email" varchar(255) not null);`);
    this.addSql(`alter table "customers" add constraint "customers_email_unique" unique ("email");`);
    this.addSql(`create table "orders" ("id" serial primary key, "customer_id" int not null, "status" varchar(255) not null default 'placed');`);
    this.addSql(`create table "products" ("id" serial primary key, "sku" varchar(255) not null, "title" varchar(255) not null, "price_cents" int not null, "retired" boolean not null default false, constraint products_price_cents_check check (price_cents > 0));`);
    this.addSql(`alter table "products" add constraint "products_sku_unique" unique ("sku");`);
    this.addSql(`create table "order_lines" ("id" serial primary key, "order_id" int not null, "product_id" int not null, "quantity" int not null, "price_cents" int not null, constraint order_lines_quantity_check check (quantity > 0));`);
    this.addSql(`create table "warehouses" ("id" serial primary key, "code" varchar(255) not null);`);
    this.addSql(`alter table "warehouses" add constraint "warehouses_code_unique" unique ("code");`);
    this.addSql(`create table "stock" ("id" serial primary key, "warehouse_id" int not null, "product_id" int not null, "quantity" int not null default 0, constraint stock_quantity_check check (quantity >= 0));`);
    this.addSql(`alter table "stock" add constraint "stock_warehouse_id_product_id_unique" unique ("warehouse_id", "product_id");`);
    this.addSql(`alter table "orders" add constraint "orders_customer_id_foreign" foreign key ("customer_id") references "customers" ("id") on update cascade;`);
    this.addSql(`alter table "order_lines" add constraint "order_lines_order_id_foreign" foreign key ("order_id") references "orders" ("id") on update cascade on delete cascade;`);
    this.addSql(`alter table "order_lines" add constraint "order_lines_product_id_foreign" foreign key ("product_id") references "products" ("id") on update cascade;`);
    this.addSql(`alter table "stock" add constraint "stock_warehouse_id_foreign" foreign key ("warehouse_id") references "warehouses" ("id") on update cascade;`);
    this.addSql(`alter table "stock" add constraint "stock_product_id_foreign" foreign key ("product_id") references "products" ("id") on update cascade;`);
  }

  override down(): void {
    this.addSql('drop table "order_lines", "orders", "stock", "warehouses", "products", "customers";');
  }
}
