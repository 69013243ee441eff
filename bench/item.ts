import { sql } from '../test/support/postgres.ts'
import { connected } from '../test/support/shop.ts'

/** Ten columns of about 280 bytes as a row prints. */
export const itemTable = `create table item (id bigint primary key, version int not null, name text not null, price numeric(12,2) not null,
  active boolean not null, at timestamptz not null, description text not null, ratio float8 not null, data jsonb not null, tag text)`

const cells = `i, 1, 'item number ' || i, (i % 100000) / 7.0, i % 3 = 0, timestamptz '2026-11-22 10:11:12.123456+00' + i * interval '1 second',
  md5(i::text) || md5((i + 1)::text) || left(md5((i + 2)::text), 16), i / 13.0::float8, jsonb_build_object('a', i, 'b', md5((i * 3)::text)),
  case when i % 5 = 0 then null else left(md5((i * 7)::text), 8) end`

/** All in one transaction. */
export async function insertItems(url: string, rows: number): Promise<void> {
  await sql(url, `insert into item select ${cells} from generate_series(1, ${rows}) i`)
}

export async function loadItems(url: string, rows: number): Promise<void> {
  await sql(url, itemTable)
  await insertItems(url, rows)
  await sql(url, 'vacuum analyze item')
}

export type Backlog = { readonly inserts: number; readonly updates: number; readonly deletes: number }

/** Inserts, then updates and deletes spread over the table, in transactions of 100, after `present` rows numbered from 1. */
export async function writeBacklog(
  url: string,
  present: number,
  { inserts, updates, deletes }: Backlog,
): Promise<void> {
  const last = present + inserts
  await sql(
    url,
    `create or replace procedure write_backlog() language plpgsql as $$
begin
  for b in 0 .. ${inserts / 100 - 1} loop
    insert into item select ${cells} from generate_series(${present} + b * 100 + 1, ${present} + b * 100 + 100) i;
    commit;
  end loop;
  for b in 0 .. ${updates / 100 - 1} loop
    update item set version = version + 1, price = price + 1, at = now()
    where id in (select 1 + (n * 7919::bigint) % ${last} from generate_series(b * 100, b * 100 + 99) n);
    commit;
  end loop;
  for b in 0 .. ${deletes / 100 - 1} loop
    delete from item where id in (select 1 + (n * 104729::bigint) % ${last} from generate_series(b * 100, b * 100 + 99) n);
    commit;
  end loop;
end $$`,
  )
  await using client = await connected(url)
  await client.query('set synchronous_commit = off')
  await client.query('call write_backlog()')
}

/** The ids deleted last: while one of them is there, the backlog is not drained. */
export function lastDeleted(present: number, { inserts, deletes }: Backlog): readonly number[] {
  const last = present + inserts
  return Array.from({ length: Math.min(200, deletes) }, (_, n) => 1 + (((deletes - 1 - n) * 104729) % last))
}

/** What is cheap to compare: counts and sums. Whole contents are compared afterwards. */
export async function sums(url: string): Promise<string> {
  const [row] = await sql<{ sums: string }>(
    url,
    `select count(*) || '/' || coalesce(sum(id), 0) || '/' || coalesce(sum(version), 0) as sums from item`,
  )
  return row?.sums ?? ''
}
