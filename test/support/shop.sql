create extension if not exists plpgsql;
create type order_state as enum ('placed', 'paid', 'shipped', 'returned');
create domain cents as bigint check (value >= 0);

create table customer (
  id bigint generated always as identity primary key,
  email text not null unique,
  name text not null,
  address jsonb,
  balance numeric(12, 2) not null default 0,
  note text,
  created_at timestamptz not null default now()
);
create table product (
  id int primary key,
  sku varchar(20) not null,
  title text not null,
  tags text[] not null default '{}',
  price cents not null,
  weight double precision,
  picture bytea,
  words tsvector generated always as (to_tsvector('simple', title)) stored
);
create table orders (
  id uuid primary key default gen_random_uuid(),
  customer_id bigint not null references customer,
  state order_state not null default 'placed',
  placed_at timestamptz not null default now(),
  version int not null default 1
);
create index orders_by_customer on orders (customer_id, placed_at desc);
create table order_line (
  order_id uuid not null references orders on delete cascade,
  line smallint not null,
  product_id int not null references product,
  quantity int not null check (quantity > 0),
  price cents not null,
  primary key (order_id, line)
);
-- Money is only moved: the sum over all accounts never changes.
create table account (
  id int primary key,
  balance bigint not null
);
-- Append only, without gaps in the count of what was acknowledged to the writer.
create table ledger (
  id bigserial primary key,
  writer int not null,
  n bigint not null,
  from_account int not null,
  to_account int not null,
  amount bigint not null,
  at timestamptz not null default clock_timestamp(),
  unique (writer, n)
);
-- No key at all.
create table visit (
  customer_id bigint,
  path text,
  at timestamptz not null default now()
);
alter table visit replica identity full;
create table basket (
  customer_id bigint primary key,
  lines int not null
);
