import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'

/** A shop's database that a migration must not hurt: TOASTed values, enums, domains, arrays, generated and identity columns, a table without
 *  a key, composite keys, foreign keys; and three promises that only hold if nothing is lost, doubled or torn: money is moved and never made
 *  (account), every acknowledged transfer is in an append-only ledger, and each order's version counts its updates. */
export const shopTables = [
  'customer',
  'product',
  'orders',
  'order_line',
  'account',
  'ledger',
  'visit',
  'basket',
] as const
export const accounts = 500
const perAccount = 1000

export async function createShop(url: string): Promise<void> {
  await using client = await connected(url)
  await client.query(await readFile(new URL('shop.sql', import.meta.url), 'utf8'))
}

/** Loads about `rows` rows, by SQL on the server. */
export async function loadShop(url: string, rows: number): Promise<number> {
  await using client = await connected(url)
  const share = (part: number): number => Math.max(10, Math.round(rows * part))
  const [customers, products, orders, lines, visits] = [share(0.12), share(0.03), share(0.25), share(0.5), share(0.1)]
  await client.query(`select setseed(0.42)`)
  await client.query(
    `insert into customer (email, name, address, balance, note)
     select 'c' || i || '@example.com', 'Customer ' || i, jsonb_build_object('city', md5(i::text), 'zip', i % 99999),
            (random() * 1000)::numeric(12, 2), case when i % 50 = 0 then (select string_agg(md5((i * j)::text), '') from generate_series(1, 200) j) end
     from generate_series(1, $1::int) i`,
    [customers],
  )
  await client.query(
    `insert into product (id, sku, title, tags, price, weight, picture)
     select i, 'SKU-' || i, 'Thing number ' || i || ' of "many", ' || chr(228 + i % 20), array['a' || i % 7, null, 'b,"' || i % 3],
            (random() * 10000)::bigint, random() * 10, decode(md5(i::text), 'hex')
     from generate_series(1, $1::int) i`,
    [products],
  )
  await client.query(
    `insert into orders (customer_id, state, placed_at)
     select 1 + (random() * ($2::int - 1))::int, (enum_range(null::order_state))[1 + i % 4], now() - i * interval '1 minute'
     from generate_series(1, $1::int) i`,
    [orders, customers],
  )
  await client.query(
    `insert into order_line (order_id, line, product_id, quantity, price)
     select id, l, 1 + (random() * ($1::int - 1))::int, 1 + (random() * 9)::int, (random() * 5000)::bigint
     from orders, generate_series(1, $2::int) l`,
    [products, Math.max(1, Math.round(lines / orders))],
  )
  await client.query(`insert into account select i, $2 from generate_series(1, $1::int) i`, [accounts, perAccount])
  await client.query(
    `insert into visit select 1 + (random() * $2)::int, '/p/' || i % 1000, now() - i * interval '1 second' from generate_series(1, $1::int) i`,
    [visits, customers],
  )
  await client.query('analyze')
  return customers + products + orders + orders * Math.max(1, Math.round(lines / orders)) + accounts + visits
}

export type Writers = {
  /** Transactions the source acknowledged to the clients so far. */
  readonly acknowledged: () => number
  /** Ends the writers; resolves with the transfers acknowledged and those whose outcome the client never heard. */
  stop(): Promise<{ readonly sure: ReadonlySet<string>; readonly unknown: ReadonlySet<string> }>
}

/** Writes to the shop from several connections until stopped, with pauses so that a small machine is not filled by the load alone.
 *  Reconnects for ever: the source may be restarted meanwhile. `first`: the number of the first writer, which no other call may use. */
export function startWriters(
  url: string,
  {
    writers = 3,
    seed = 1,
    pause = 2,
    truncates = true,
    first = 0,
  }: { writers?: number; seed?: number; pause?: number; truncates?: boolean; first?: number } = {},
): Writers {
  let commits = 0
  let stopped = false
  const sure = new Set<string>()
  const unknown = new Set<string>()
  const write = async (writer: number): Promise<void> => {
    const random = generator(seed * 1000 + writer)
    let n = 0
    while (!stopped) {
      try {
        await using client = await connected(url)
        client.on('error', () => {})
        while (!stopped) {
          const transfer = random() < 0.4
          if (transfer) n++
          const name = `${writer}/${n}`
          if (transfer) unknown.add(name)
          try {
            await client.query('begin')
            if (transfer) await moveMoney(client, random, writer, n)
            else await shopping(client, random, truncates && writer === first)
          } catch (error) {
            if (!(error instanceof pg.DatabaseError) || error.code === '57P01') throw error
            await client.query('rollback')
            unknown.delete(name)
            continue
          }
          await client.query('commit')
          if (transfer) {
            unknown.delete(name)
            sure.add(name)
          }
          commits++
          if (pause > 0) await sleep(random() * 2 * pause)
        }
      } catch {
        if (!stopped) await sleep(100)
      }
    }
  }
  const running = Array.from({ length: writers }, (_, i) => write(first + i))
  return {
    acknowledged: () => commits,
    async stop() {
      stopped = true
      await Promise.all(running)
      return { sure, unknown }
    },
  }
}

async function moveMoney(client: pg.Client, random: () => number, writer: number, n: number): Promise<void> {
  const [from, to] = [below(random, accounts) + 1, below(random, accounts) + 1]
  const amount = below(random, 50)
  // Lower id first: no deadlocks between writers.
  for (const [id, change] of [
    [from, -amount],
    [to, amount],
  ].toSorted(([a = 0], [b = 0]) => a - b)) {
    await client.query('update account set balance = balance + $2 where id = $1', [id, change])
  }
  await client.query('insert into ledger (writer, n, from_account, to_account, amount) values ($1, $2, $3, $4, $5)', [
    writer,
    n,
    from,
    to,
    amount,
  ])
}

async function shopping(client: pg.Client, random: () => number, truncates: boolean): Promise<void> {
  const kind = below(random, 100)
  const customer = 'id = (select id from customer where id >= $1 order by id limit 1)'
  const some = below(random, 3000)
  if (kind < 25) {
    const order = await client.query<{ id: string }>(
      'insert into orders (customer_id) select id from customer where id >= $1 order by id limit 1 returning id',
      [some],
    )
    for (let line = 1; line <= 1 + below(random, 4); line++) {
      await client.query(
        'insert into order_line select $1, $2, id, $3, price from product order by id offset $4 limit 1',
        [order.rows[0]?.id, line, 1 + below(random, 5), below(random, 50)],
      )
    }
  } else if (kind < 45) {
    await client.query(
      `update orders set version = version + 1, state = (enum_range(null::order_state))[$2]
       where id in (select id from orders order by id offset $1 limit 3 for update skip locked)`,
      [below(random, 40), 1 + below(random, 4)],
    )
  } else if (kind < 55) {
    // The large note stays as it is and is not sent again.
    await client.query(`update customer set balance = balance + 1, name = name || '.' where ${customer}`, [some])
  } else if (kind < 60) {
    await client.query(`update customer set note = repeat(md5(random()::text), $2) where ${customer}`, [
      some,
      below(random, 400),
    ])
  } else if (kind < 66) {
    await client.query(
      'delete from orders where id in (select id from orders order by id offset $1 limit 2 for update skip locked)',
      [below(random, 30)],
    )
  } else if (kind < 72) {
    // A key moves: twice, so that both directions of the order in key space occur.
    const id = 1_000_000 + below(random, 100_000)
    await client.query(
      `insert into product (id, sku, title, price, picture)
       values ($1, 'moving', 'Moving', 5, (select string_agg(decode(md5(($1 + i)::text), 'hex'), '') from generate_series(1, 400) i)) on conflict do nothing`,
      [id],
    )
    if (random() < 0.7) return
    await client.query(
      'update product set id = id + 1000000 where id = $1 and not exists (select from product where id = $1 + 1000000)',
      [id],
    )
    if (random() < 0.5)
      await client.query(
        'update product set id = id - 500000 where id = $1 + 1000000 and not exists (select from product where id = $1 + 500000)',
        [id],
      )
  } else if (kind < 82) {
    await client.query(`insert into visit values ($1, '/'), ($1, '/'), (null, null)`, [some])
    if (random() < 0.1)
      await client.query(
        `update visit set path = '/again' where ctid = (select ctid from visit where customer_id = $1 limit 1)`,
        [some],
      )
    if (random() < 0.1)
      await client.query('delete from visit where ctid = (select ctid from visit where customer_id = $1 limit 1)', [
        some,
      ])
  } else if (kind < 90) {
    await client.query(
      'insert into basket values ($1, 1) on conflict (customer_id) do update set lines = basket.lines + 1',
      [below(random, 200)],
    )
    await client.query('savepoint maybe')
    await client.query('delete from basket where customer_id < $1', [below(random, 20)])
    await client.query(random() < 0.5 ? 'rollback to maybe' : 'release maybe')
  } else if (kind < 91) {
    if (truncates && random() < 0.2) await client.query('truncate basket')
  } else if (kind < 97) {
    await client.query(
      `insert into customer (email, name) values ($1, 'New') on conflict (email) do update set name = excluded.name || '!'`,
      [`new${below(random, 500)}@example.com`],
    )
  } else {
    // Swaps a unique value between two rows within one transaction.
    const email = `swap${below(random, 20)}@example.com`
    await client.query(`update customer set email = 'was-' || id || '-' || email where email = $1`, [email])
    await client.query(`update customer set email = $1 where ${customer.replace('$1', '$2')}`, [email, some])
  }
}

/** Differences between the two ends, each a sentence; read by SQL of its own. */
export async function compareShops(
  sourceUrl: string,
  targetUrl: string,
  written: Awaited<ReturnType<Writers['stop']>> | undefined,
): Promise<readonly string[]> {
  const found = [...(await compareTables(sourceUrl, targetUrl, shopTables))]
  await using target = await connected(targetUrl)
  const sum = await target.query<{ sum: string }>('select sum(balance)::text as sum from account')
  if (sum.rows[0]?.sum !== String(accounts * perAccount)) found.push(`account: the sum is ${sum.rows[0]?.sum}`)
  if (written !== undefined) {
    const ledger = await target.query<{ name: string }>(`select writer || '/' || n as name from ledger`)
    const there = new Set(ledger.rows.map(({ name }) => name))
    if (there.size !== ledger.rows.length) found.push('ledger: a transfer is there twice')
    for (const name of written.sure)
      if (!there.has(name)) found.push(`ledger: acknowledged transfer ${name} is missing`)
    for (const name of there) {
      if (!written.sure.has(name) && !written.unknown.has(name)) found.push(`ledger: ${name} was never written`)
    }
  }
  return found
}

/** Compares whole tables by the md5 of all rows' text in one order, as `schema.table` or a name in `public`; and their counts. */
export async function compareTables(
  sourceUrl: string,
  targetUrl: string,
  tables: readonly string[],
): Promise<readonly string[]> {
  const read = async (url: string): Promise<readonly string[]> => {
    await using client = await connected(url)
    await client.query(`set timezone to 'UTC'`)
    const digests: string[] = []
    for (const table of tables) {
      // A table may well have a column x, which would be compared alone.
      const { rows } = await client.query<{ digest: string }>(
        `select count(*) || ' rows, md5 ' || coalesce(md5(string_agg(whole_row::text, ',' order by whole_row::text collate "C")), 'none') as digest
           from ${table} whole_row`,
      )
      digests.push(rows[0]?.digest ?? '')
    }
    return digests
  }
  const [source, target] = await Promise.all([read(sourceUrl), read(targetUrl)])
  return tables.flatMap((table, i) =>
    source[i] === target[i] ? [] : [`${table}: source ${source[i]}, target ${target[i]}`],
  )
}

/** Mulberry32: small, seeded, good enough to choose operations. */
function generator(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

function below(random: () => number, limit: number): number {
  return Math.floor(random() * limit)
}

/** Makes the planner's numbers say that these tables hold 200,000 rows, which is what decides on partitions and ranges. Each must hold a row. */
export async function pretendLarge(url: string, tables: readonly string[]): Promise<void> {
  await using client = await connected(url)
  await client.query(
    `update pg_class set reltuples = 200000, relpages = pg_relation_size(oid) / current_setting('block_size')::int
      where oid = any($1::regclass[])`,
    [tables],
  )
}

type Connected = pg.Client & AsyncDisposable
export async function connected(url: string): Promise<Connected> {
  const client = new pg.Client({ connectionString: url, application_name: 'shop' })
  await client.connect()
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() })
}
