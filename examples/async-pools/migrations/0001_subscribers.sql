create table tenants (id serial primary key, slug text not null unique);
create table customers (id serial primary key, tenant_id int not null references tenants, email text not null, unique (tenant_id, email));
create table contacts (id serial primary key, customer_id int not null references customers, name text not null);
create table subscribers (id serial primary key, tenant_id int not null references tenants, username text not null unique, ipv4 inet unique, ipv6 inet unique);
create table radius_profiles (id serial primary key, subscriber_id int not null unique references subscribers, download_kbit int not null);
insert into tenants (slug) values ('default');
