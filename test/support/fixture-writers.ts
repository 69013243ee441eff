import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { connected } from './shop.ts'

/** One transaction's statements. */
type Writing = readonly string[]
interface Writers<Result> extends AsyncDisposable {
  readonly commits: () => number
  /** Ends them; a repeat resolves to the same. */
  stop(): Promise<Result>
}

/** Commits transactions of the list at random, from two connections, until stopped; `stop` resolves to how often each one was committed. Chance may
 *  repeat a value or lock rows in another order: such a transaction is rolled back. Any other error is a mistake in the list, and `stop` rejects with
 *  it. */
export function startRandomWriters(url: string, list: readonly Writing[], seed: number): Writers<readonly number[]> {
  const counts = list.map(() => 0)
  const expected = new Set(['23503', '23505', '40001', '40P01'])
  let stopped = false
  const write = async (writer: number): Promise<void> => {
    await using client = await connected(url)
    await client.query('select setseed($1)', [((seed * 7 + writer) % 1000) / 1000])
    while (!stopped) {
      const { rows } = await client.query<{ n: number }>('select floor(random() * $1)::int as n', [list.length])
      const n = rows[0]?.n ?? 0
      try {
        await client.query('begin')
        for (const statement of list[n] ?? []) await client.query(statement)
        await client.query('commit')
        counts[n] = (counts[n] ?? 0) + 1
      } catch (error) {
        await client.query('rollback').catch(() => {})
        if (!(error instanceof pg.DatabaseError) || !expected.has(error.code ?? ''))
          throw new Error(`transaction ${n}: ${String(error)}\n${list[n]?.join(';\n')}`, { cause: error })
      }
      await sleep(12)
    }
  }
  return writersOf(
    Promise.all([write(1), write(2)]),
    () => counts.reduce((sum, n) => sum + n, 0),
    () => (stopped = true),
    () => counts,
  )
}

/** Commits chinook's transactions 1, 2, 3, … until stopped; `stop` resolves to the number of the last one. */
export function startNumberedWriter(url: string): Writers<number> {
  let n = 0
  let stopped = false
  const write = async (): Promise<void> => {
    await using client = await connected(url)
    while (!stopped) {
      await client.query(['begin', ...chinookTransaction(n + 1), 'commit'].join(';\n'))
      n++
      await sleep(4)
    }
  }
  return writersOf(
    write(),
    () => n,
    () => (stopped = true),
    () => n,
  )
}

function writersOf<Result>(
  running: Promise<unknown>,
  commits: () => number,
  end: () => void,
  result: () => Result,
): Writers<Result> {
  running.catch(() => {}) // reported by stop
  const stop = async (): Promise<Result> => {
    end()
    await running
    return result()
  }
  return { commits, stop, [Symbol.asyncDispose]: async () => void (await stop()) }
}

/** Brings a freshly loaded chinook to the state after transaction `last`. */
export async function replayNumbered(url: string, last: number): Promise<void> {
  await using client = await connected(url)
  await client.query('begin')
  for (let n = 1; n <= last; n++) await client.query(chinookTransaction(n).join(';\n'))
  await client.query('commit')
}

/** What transaction `n` does depends on nothing but `n` and the ones before it: so any state is known by the number of the last one, which is in `journal`. */
function chinookTransaction(n: number): Writing {
  const journal = `insert into journal values (${n})`
  const some = (most: number, factor = 7919): number => 1 + ((n * factor) % most)
  switch (n % 8) {
    case 0:
      return [
        journal,
        `insert into invoice select ${100_000 + n}, ${some(59)}, timestamp '2020-01-01' + ${n} * interval '1 hour', 'Straße ${n}', null, null, 'X', '', ${n} / 100.0`,
        `insert into invoice_line select ${10 * (100_000 + n)} + i, ${100_000 + n}, ${some(3503)}, 0.99, i from generate_series(1, 3) i`,
      ]
    case 1:
      return [
        journal,
        `update track set unit_price = ${n} / 100.0, milliseconds = milliseconds + 1, name = left(name || ' ü''${n}', 200) where track_id = ${some(3503)}`,
      ]
    case 2:
      return [journal, `delete from playlist_track where track_id = ${some(3503, 31)}`]
    case 3:
      return [journal, `insert into playlist_track values (${some(18)}, ${some(3503, 31)}) on conflict do nothing`]
    case 4:
      return [
        journal,
        `update customer set company = repeat('c', ${n % 80}), fax = null, phone = '' where customer_id = ${some(59)}`,
      ]
    case 5:
      return [
        journal,
        `delete from invoice_line where invoice_line_id = ${some(2240, 17)}`,
        'savepoint s',
        'delete from invoice_line where invoice_line_id > 2240',
        'rollback to s',
      ]
    case 6:
      return [
        journal,
        `insert into artist values (${100_000 + n}, 'Artist ${n}')`,
        `update artist set artist_id = artist_id + 1000000 where artist_id = ${100_000 + n - 8}`,
      ]
    default:
      return [
        journal,
        `update employee set birth_date = birth_date + interval '1 day 1 second' where employee_id = ${some(8)}`,
        `update invoice set total = total + 0.01 where invoice_id = ${some(412, 13)}`,
        'update genre set name = upper(name) where genre_id = 1; update genre set name = lower(name) where genre_id = 1',
      ]
  }
}

const anyOf = (most: number, least = 1): string => `(select ${least} + floor(random() * ${most})::int)`
const every = `"Odd Schema"."Every.type of it"`
/** Every column that can be given a value, apart from the two counted ones. */
const everyColumns = `b, i2, i4, i8, f4, f8, n, n2, cash, t, v, c, c1, na, ci, by, u, d, ti, tiz, ts, tsz, iv, ivy, j, jb, x, ip, net, m, m8, bi, vb, o, lsn, tsv, tsq, p, po,
  ci2, r4, rn, rts, mr, a4, at, an, ab, aj, am, mood, dom, dtags, comp, comps`

export const pagilaWriting: readonly Writing[] = [
  [
    `with r as (
       insert into rental (rental_date, inventory_id, customer_id, staff_id)
       select timestamptz '2022-03-01' + random() * interval '90 days', ${anyOf(4581)}, ${anyOf(599)}, ${anyOf(2)} returning *)
     insert into payment (customer_id, staff_id, rental_id, amount, payment_date)
     select customer_id, staff_id, rental_id, (random() * 99)::numeric(5, 2), rental_date from r`,
  ],
  // Rows change their partition, and with it their table in the log.
  [
    `update payment p set payment_date = timestamptz '2022-01-01' + random() * interval '210 days'
       from (select 16050 + floor(random() * 16000)::int as x) s where p.payment_id between s.x and s.x + 2`,
  ],
  [
    `with r as materialized (select ${anyOf(16_000)} as id), p as (delete from payment using r where rental_id = r.id)
     delete from rental using r where rental.rental_id = r.id`,
  ],
  [
    `update film set fulltext = to_tsvector('english', title || ' ' || coalesce(description, '') || ' ' || md5(random()::text)),
            special_features = special_features[1:3] || array[null, 'a,"b\\' || floor(random() * 10)] where film_id = ${anyOf(1000)}`,
  ],
  [
    `update film set release_year = 1901 + floor(random() * 254)::int, rating = (enum_range(null::mpaa_rating))[1 + floor(random() * 5)::int],
            original_language_id = ${anyOf(6)}, rental_rate = (random() * 99)::numeric(4, 2) where film_id = ${anyOf(1000)}`,
    `update film set special_features = null, length = null, rating = null where film_id = ${anyOf(1000)}`,
  ],
  [
    `insert into film_actor (actor_id, film_id) values (${anyOf(200)}, ${anyOf(1000)}) on conflict do nothing`,
    `delete from film_actor where film_id = ${anyOf(1000)} and actor_id < 40`,
    `update film_category set category_id = ${anyOf(16)} where film_id = ${anyOf(1000)}`,
  ],
  [
    `insert into customer (store_id, first_name, last_name, email, address_id) values (1, 'NEW', 'Ünïcode ''', null, ${anyOf(600)})`,
    `update customer set email = lower(email) || '.x', active = null, activebool = not activebool where customer_id = ${anyOf(620)}`,
    `insert into actor (first_name, last_name) values ('A', 'B')`,
    'delete from actor where actor_id > 200 and actor_id % 3 = 0',
  ],
  // The picture is large: the second update does not send it again.
  [
    `update staff set picture = (select decode(string_agg(md5((random() + i)::text), ''), 'hex') from generate_series(1, 600) i) where staff_id = ${anyOf(2)}`,
  ],
  [`update staff set active = not active, password = null where staff_id = ${anyOf(2)}`],
  [
    `update language set name = 'L' || floor(random() * 100) where language_id = ${anyOf(6)}`,
    'savepoint s',
    'delete from film_category',
    'rollback to savepoint s',
    `update address set address2 = case when random() < 0.5 then '' end, phone = phone || '0' where address_id = ${anyOf(603)}`,
  ],
]

export const oddWriting: readonly Writing[] = [
  [`insert into ${every} (${everyColumns}) select ${everyColumns} from ${every} order by random() limit 2`],
  // Large values stay as they are and are not sent again.
  [
    `update ${every} set i4 = floor(random() * 1000), f4 = '-0', f8 = random(), n = n * 1.0, comp.label = 'l' || random(), am = am || public.mood 'sad' where id % 50 = ${anyOf(50, 0)}`,
    `update ${every} set dtags = array['"', null, '\\'], tsz = tsz + interval '1 microsecond', jb = '{"x": 1.10}', r4 = '(1,5]', at = '[5:6]={a,NULL}' where id % 50 = ${anyOf(50, 0)}`,
  ],
  [
    `update ${every} set t = repeat(md5(random()::text), 2000), by = decode(repeat(md5(random()::text), 200), 'hex'), x = ('<a>' || random() || '</a>')::xml where id % 100 = ${anyOf(100, 0)}`,
    `update ${every} set i2 = 7 where id % 100 = ${anyOf(100, 0)}`,
  ],
  [`delete from ${every} where id > 100 and id % 60 = ${anyOf(60, 0)}`],
  [`update ${every} set id = default where id = ${anyOf(2000, 100)}`],
  [
    `insert into "Odd Schema"."UPPER" ("select", "Ünïcode") values ('s', null)`,
    `insert into "Odd Schema"."UPPER" ("ID", "select") values (${anyOf(100_000, 100_000)}, 'given') on conflict do nothing`,
    `update "Odd Schema"."UPPER" set "ID" = "ID" + 1000000 where "ID" = ${anyOf(60)}`,
  ],
  [
    `update public."$weird "" quote" set "b c" = "b c" * 10 where "b c" between 3 and 4`,
    `update public."$weird "" quote" set "b c" = "b c" / 10, d = 'infinity' where "b c" between 30 and 40`,
    `insert into public."$weird "" quote" values ('', ${anyOf(100)} / 8.0, null) on conflict do nothing`,
  ],
  // Equal keys that print differently.
  [
    `update public.numeric_key set k = (k::text || '0')::numeric, t = 'longer' where k = ${anyOf(100)} / 10.0`,
    `update public.numeric_key set k = trim_scale(k), t = 'shorter' where k = ${anyOf(100)} / 10.0`,
  ],
  [
    `delete from public.numeric_key where k = 5`,
    `insert into public.numeric_key values ((array[5, 5.0, 5.00])[1 + floor(random() * 3)::int], md5(random()::text))`,
  ],
  [
    `update public.decimal_key set k = k + 1000 where k = ${anyOf(200)}`,
    `update public.decimal_key set k = k - 1000 where k = ${anyOf(200, 1000)}`,
  ],
  [
    `update public.citext_key set k = upper(k::text) where k = 'key' || ${anyOf(200)}`,
    `update public.citext_key set k = lower(k::text), n = n + 1 where k = 'key' || ${anyOf(200)}`,
    `delete from public.citext_key where k = 'kEY7'`,
    `insert into public.citext_key values ((array['kEY7', 'KEY7'])[1 + floor(random() * 2)::int], 7)`,
  ],
  [
    `update public.char_key set m = (enum_range(null::public.mood))[1 + floor(random() * 4)::int] where k = 'k' || ${anyOf(200)}`,
    `update public.char_key set v = -v where k = 'k' || ${anyOf(200)}`,
  ],
  [
    `insert into public.uuid_key default values`,
    `update public.uuid_key set k = gen_random_uuid() where k = (select k from public.uuid_key order by k limit 1)`,
    `delete from public.uuid_key where k = (select k from public.uuid_key order by k desc limit 1)`,
    `update public.bytes_key set k = k || '\\x00', t = t + interval '1 day' where v = 'v' || ${anyOf(200)}`,
  ],
  // Two rows exchange a unique value.
  [
    `update public.unique_beside set email = '-' || email where id in (3, 4)`,
    `update public.unique_beside set email = case id when 3 then (select substr(email, 2) from public.unique_beside where id = 4) else (select substr(email, 2) from public.unique_beside where id = 3) end where id in (3, 4)`,
    `delete from public.unique_beside where id = 9`,
    `insert into public.unique_beside values (9, 'u9@example.com')`,
  ],
  [
    `update public.by_index set email = id || '@' || floor(random() * 1000), v = 'moved' where id = ${anyOf(200)}`,
    `update public.by_index set v = md5(random()::text) where id = ${anyOf(200)}`,
    `delete from public.by_index where id = 200`,
    `insert into public.by_index values (200, 'again' || random())`,
  ],
  [
    `insert into public.no_key select 1, 'twice', null from generate_series(1, 2)`,
    `delete from public.no_key where ctid = (select ctid from public.no_key limit 1)`,
    `update public.no_key set b = 'changed', c = 1.0 where ctid = (select ctid from public.no_key where b = 'twice' limit 1)`,
  ],
  [
    `insert into public.dropped (id) values (${anyOf(10_000, 200)}) on conflict do nothing`,
    'update public.dropped set kept = kept || id where id % 50 = 3',
  ],
  [`insert into public.counted (v) values ('by sequence')`],
  // Between partitions of two depths, and to the default one.
  [
    `update public.measured set region = (array['north', 'south', 'east', 'west'])[1 + floor(random() * 4)::int], v = random() where k = ${anyOf(300)}`,
    `update public.measured set k = k + 1000 where k = ${anyOf(300)}`,
    `update public.measured set k = k - 1000 where k = ${anyOf(300, 1000)}`,
    `insert into public.measured values ('south', ${anyOf(1_000_000, 10_000)}, 'NaN', null) on conflict do nothing`,
  ],
  [
    // Seldom enough that a copy of the table fits between two.
    'do $$ begin if random() < 0.05 then truncate public.no_key; end if; end $$',
    `insert into public.no_key values (1, 'after', 1.00), (1, 'after', 1.00)`,
  ],
]
