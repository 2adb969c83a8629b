create table guests (
    id bigint generated always as identity primary key,
    name text not null,
    email text not null unique
);
create table entries (
    id bigint generated always as identity primary key,
    guest bigint not null references guests,
    text text not null check (text <> ''),
    written timestamptz not null default now()
);
create index on entries (guest);
insert into guests (name, email) values ('The house', 'house@example.org');
insert into entries (guest, text) values (1, 'Welcome!');
