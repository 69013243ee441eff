import assert from 'node:assert/strict'
import { after, before, describe, it } from 'node:test'
import pg from 'pg'
import { startPostgres, sql, type PostgresServer } from '../support/postgres.ts'
import { scene } from '../support/scene.ts'
import { needs } from '../support/servers.ts'
import { until } from '../support/worker.ts'

/** Each changes what a value prints as or reads as, what a query sees, or how long it may take. */
const printing = [
  { DateStyle: 'SQL, DMY', IntervalStyle: 'sql_standard', TimeZone: 'Asia/Kathmandu' },
  { DateStyle: 'SQL, MDY', IntervalStyle: 'iso_8601', TimeZone: 'America/St_Johns' },
] as const
const both = {
  bytea_output: 'escape',
  extra_float_digits: '-15',
  lc_monetary: 'C',
  search_path: 'hostile, pg_catalog',
  standard_conforming_strings: 'off',
  backslash_quote: 'on',
  quote_all_identifiers: 'on',
  array_nulls: 'off',
  xmlbinary: 'hex',
  xmloption: 'document',
  row_security: 'on',
  statement_timeout: '50ms',
  lock_timeout: '1ms',
  idle_in_transaction_session_timeout: '1ms',
  idle_session_timeout: '1ms',
  transaction_timeout: '400ms',
  default_transaction_read_only: 'on',
  default_transaction_isolation: 'serializable',
  default_transaction_deferrable: 'on',
  synchronous_commit: 'off',
  client_encoding: 'LATIN1',
  plan_cache_mode: 'force_custom_plan',
  check_function_bodies: 'off',
}
const own =
  '-c datestyle=ISO,YMD -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=3 -c bytea_output=hex ' +
  '-c search_path=public -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 ' +
  '-c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c standard_conforming_strings=on -c array_nulls=on ' +
  '-c default_transaction_isolation=read\\ committed -c client_encoding=UTF8 -c xmloption=content -c xmlbinary=base64'

/** A session that nothing hostile reaches. */
async function calm<Row extends pg.QueryResultRow>(url: string, text: string): Promise<Row[]> {
  const client = new pg.Client({ connectionString: url, options: own })
  await client.connect()
  try {
    await client.query('set transaction_timeout = 0')
    return (await client.query<Row>(text)).rows
  } finally {
    await client.end()
  }
}

describe('settings of roles and databases that would change what is read and written', needs('pg'), () => {
  let server: PostgresServer
  before(async () => {
    server = await startPostgres({ settings: { logical_decoding_work_mem: '64kB' } })
  })
  after(async () => await server?.[Symbol.asyncDispose]())

  for (const level of ['role', 'database'] as const) {
    it(`do not, set for the ${level} at both ends`, async (t) => {
      const names = ['source', 'target'].map((end) => `${level}_${end}`)
      const urls: string[] = []
      for (const [i, name] of names.entries()) {
        await sql(server.adminUrl, `create role ${name} superuser login`)
        await sql(server.adminUrl, `create database ${name} owner ${name}`)
        for (const [key, value] of Object.entries({ ...both, ...printing[i] })) {
          await sql(
            server.adminUrl,
            `alter ${level} ${name} set ${key} = ${key === 'search_path' ? value : pg.escapeLiteral(value)}`,
          )
        }
        const url = server.url(name, name)
        urls.push(url)
        await calm(
          url,
          `create schema hostile;
           create function hostile.count(int) returns int language sql as 'select 1/0';
           create function hostile.now() returns timestamptz language sql as 'select null::timestamptz';
           create function hostile.md5(text) returns text language sql as 'select ''x''';
           create table hostile.pg_class (oid oid); create table hostile.pg_publication (oid oid);
           create table public.kinds (
             id int primary key, at timestamptz, local timestamp, day date, span interval, single real, double double precision,
             bytes bytea, cash money, texts text[], x xml, plain text, clock timetz)`,
        )
      }
      const [from = '', to = ''] = urls
      const row = (id: number): string =>
        `(${id}, '2024-03-04 05:06:07.891234+00', '2024-03-04 05:06:07.5', '2024-04-03', '1 year -2 days 03:04:05.6', 0.1, 0.1 + 0.2,
          '\\x5c0027ff', '1234.56', array['a', null, 'NULL', '\\'], '<a>1</a>b', 'it''s a \\ and "q" ä', '12:00:00+05:45')`
      const insert = (
        first: number,
        last: number,
      ): string => `insert into public.kinds select i, t.at, t.local, t.day, t.span, t.single, t.double,
        t.bytes, t.cash, t.texts, t.x, t.plain, t.clock from generate_series(${first}, ${last}) i,
        (values ${row(0)}) v (id, at, local, day, span, single, double, bytes, cash, texts, x, plain, clock),
        lateral (select v.at::timestamptz, v.local::timestamp, v.day::date, v.span::interval, v.single::real, v.double::float8, v.bytes::bytea,
           v.cash::money, v.texts::text[], v.x::xml, v.plain, v.clock::timetz) t`
      await calm(from, insert(1, 500))
      t.diagnostic(`fault: ${Object.keys({ ...both, ...printing[0] }).length} hostile settings for the ${level}`)
      await using pipeline = await scene({
        source: from,
        target: to,
        name: `hostile_${level}`,
        mode: 'hybrid',
        include: 'public.*',
      })
      const worker = pipeline.run()
      const digest = `select count(*)::int as n, md5(string_agg(k::text, ',' order by id)) as md5 from kinds k`
      const equal = async (n: number): Promise<readonly string[]> => {
        const [a, b] = [await calm(from, digest), await calm(to, digest).catch((error: unknown) => [String(error)])]
        assert.equal(a[0]?.['n'], n)
        return JSON.stringify(a) === JSON.stringify(b) ? [] : [JSON.stringify(a), JSON.stringify(b)]
      }
      await until(async () => await equal(500), { seconds: 60, worker })
      // One transaction larger than the sender's memory, sent within one of the sender's own.
      await calm(from, insert(501, 20_000))
      await calm(from, `update public.kinds set plain = plain || '!', span = -span where id % 7 = 0`)
      await calm(from, `delete from public.kinds where id % 11 = 0`)
      await until(async () => await equal(20_000 - 1818), { seconds: 60, worker })
      assert.equal((await worker.stop()).code, 0)
    })
  }
})
