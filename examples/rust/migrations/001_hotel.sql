create table rooms (
    id int generated always as identity primary key,
    name text not null unique
);

create table guests (
    id int generated always as identity primary key,
    email text not null unique
);

create table bookings (
    id int generated always as identity primary key,
    room_id int not null references rooms,
    guest_id int not null references guests,
    day date not null,
    unique (room_id, day)
);

create table invoices (
    number int primary key,
    booking_id int not null unique references bookings,
    cents int not null check (cents > 0)
);
