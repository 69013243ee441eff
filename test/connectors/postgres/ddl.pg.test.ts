import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { promisify } from 'node:util'
import type pg from 'pg'
import { connect, parse, type PostgresConfig } from '../../../connectors/postgres/config.ts'
import { applyDdl, readDdl } from '../../../connectors/postgres/ddl.ts'
import { readCatalog, tableSchema, type CatalogTable } from '../../../connectors/postgres/schema.ts'
import { Failure } from '../../../src/errors.ts'
import { needs, postgres } from '../../support/servers.ts'

const signal = AbortSignal.timeout(180_000)
const run = promisify(execFile)
const fixtures = join(import.meta.dirname, '../../../../shared/fixtures')

describe('definitions of the sample databases', needs('pg15', 'pg'), () => {
  for (const fixture of ['pagila', 'chinook']) {
    for (const style of ['dump', 'tables'] as const) {
      test(`${fixture} by ${style}`, async (t) => {
        const text = await readFile(join(fixtures, `${fixture}.sql`), 'utf8').catch(() => undefined)
        if (text === undefined) return t.skip('the fixture is not here')
        const source = parse({ url: await (await postgres(15)).database('ddl') })
        await load(source, text)
        const target = parse({ url: await (await postgres(18)).database('ddl') })
        const tables = await copyDefinitions(source, target, style)
        // A domain that no column has stays behind where only tables are copied.
        const wanted = (entry: string): boolean => style === 'dump' || !entry.startsWith('domain public."bıgınt"')
        assert.deepEqual(await described(target), (await described(source)).filter(wanted))
        assert.ok(tables.length >= 11)
      })
    }
  }
})

describe('definitions by tables', needs('pg'), () => {
  test('everything a column can be made of', async () => {
    const server = await postgres()
    const source = parse({ url: await server.database('ddl') })
    const target = parse({ url: await server.database('ddl') })
    await query(
      source,
      `create schema "Odd ""schema"; create schema types;
       create collation types.numbered (provider = icu, locale = 'und-u-kn', deterministic = false);
       create collation types.plain (lc_collate = 'C', lc_ctype = 'C');
       create domain types.label as text collate types.plain;
       create type types.mood as enum ('sad', 'it''s ok');
       create domain types.positive as int check (value > 0);
       create domain types.even as types.positive default 2 constraint twos check (value % 2 = 0) not null;
       create type types.part as (a types.even, b text collate "C", c types.mood[]);
       create type types.span as range (subtype = float8, multirange_type_name = types.spans);
       create sequence types.shared increment 5 start 100 cache 3 cycle maxvalue 1000;
       create table "Odd ""schema"."Täble " (
         id bigint generated always as identity (start 42 increment 7) primary key,
         n int default nextval('types.shared'), s serial, e types.even, p types.part, m types.mood[] default '{sad}', r types.span,
         mr types.spans, t text collate "C" not null default 'a''b', g int generated always as (n * 2) stored,
         nb text collate types.numbered, lb types.label, gone int, unique (t), check (n > 0), constraint "lo ng" check (length(t) < 10) not valid
       ) with (fillfactor = 70);
       alter table "Odd ""schema"."Täble " drop column gone;
       create index "by, n" on "Odd ""schema"."Täble " (n desc nulls last) include (t) where n > 5;
       create index "by numbered" on "Odd ""schema"."Täble " ((t || 'x') collate types.numbered);
       create table public.child (id int primary key, parent bigint references "Odd ""schema"."Täble " (id) on delete cascade deferrable);
       create table public.root (k int not null, d date not null, v text, gone int, primary key (d, k)) partition by range (d);
       create table public.mid partition of public.root for values from ('2020-01-01') to ('2021-01-01') partition by list (k);
       create table public.leaf (v text, d date not null, k int not null);
       alter table public.root drop column gone;
       alter table public.mid attach partition public.leaf for values in (1, 2);
       create table public.rest partition of public.root default;
       create index root_v on public.root (v); alter index public.leaf_v_idx rename to z_leaf_v;
       alter table public.root add check (k >= 0);
       create table public.base (id int, x text); create table public.sub (y int) inherits (public.base);
       create unique index base_id on public.base (id); alter table public.base alter id set not null;
       alter table public.base replica identity using index base_id;
       create function public.f(int) returns int language sql immutable as 'select $1';
       create table public.uses (id int primary key, a int default public.f(1), check (public.f(id) > 0));
       create index uses_f on public.uses (public.f(a));
       create view public.seen as select 1 as one;`,
    )
    await copyDefinitions(source, target, 'tables')
    const at = await described(target)
    const from = await described(source)
    const known = (entry: string): boolean => !/public\.f\(|uses_f|uses column 2/.test(entry)
    assert.deepEqual(at.filter(known), from.filter(known))
    const ddl = await readDdl(
      source,
      (await catalog(source)).map((table) => tableSchema(table, 1)),
      'tables',
      signal,
    )
    assert.deepEqual(ddl.notCopied.toSorted(), [
      'constraint uses_id_check of public.uses (needs function public.f(integer))',
      'default of public.uses.a (needs function public.f(integer))',
      'function public.f(integer)',
      'index uses_f (needs function public.f(integer))',
      'replica identity of public.base',
      'view public.seen',
    ])
  })

  test('a generated column that needs a function of the database is refused, by name', async () => {
    const source = parse({ url: await (await postgres()).database('ddl') })
    await query(
      source,
      `create function public.f(int) returns int language sql immutable as 'select $1';
       create table public.t (id int primary key, g int generated always as (public.f(id)) stored)`,
    )
    const tables = (await catalog(source)).map((table) => tableSchema(table, 1))
    await assert.rejects(readDdl(source, tables, 'tables', signal), (error) => {
      assert.ok(error instanceof Failure)
      assert.equal(error.code, 'UNSUPPORTED')
      return /public\.t\.g needs function public\.f\(integer\)/.test(error.message)
    })
  })

  test('a foreign key whose rows are on their way is asked for again', async () => {
    const server = await postgres()
    const source = parse({ url: await server.database('ddl') })
    const target = parse({ url: await server.database('ddl') })
    await query(
      source,
      'create table public.a (id int primary key); create table public.b (id int primary key, a int references public.a)',
    )
    const ddl = await readDdl(
      source,
      (await catalog(source)).map((table) => tableSchema(table, 1)),
      'tables',
      signal,
    )
    await applyDdl(target, ddl, 'before', signal)
    await query(target, 'insert into public.b values (1, 1)')
    await assert.rejects(
      applyDdl(target, ddl, 'after', signal),
      (error) => error instanceof Failure && error.code === 'SERVER_BUSY',
    )
    await query(target, 'insert into public.a values (1)')
    await applyDdl(target, ddl, 'after', signal)
    assert.deepEqual(await described(target), await described(source))
  })
})

test('a dump ends with its connection, when a network swallows everything', needs('pg'), async (t) => {
  const source = parse({ url: await (await postgres(18)).database('ddl') })
  const dir = await mkdtemp(join(tmpdir(), 'crossfade-tools-'))
  const path = process.env['PATH']
  t.after(async () => {
    process.env['PATH'] = path
    await rm(dir, { recursive: true })
  })
  for (const tool of ['pg_dump', 'pg_restore']) {
    const script = `#!/bin/sh\nif [ "$1" = --version ]; then echo 'x (PostgreSQL) 99'; else echo "$@" > ${dir}/asked; exit 1; fi\n`
    await writeFile(join(dir, tool), script, { mode: 0o755 })
  }
  process.env['PATH'] = `${dir}:${path}`
  await assert.rejects(readDdl(source, [], 'dump', signal))
  const asked = await readFile(join(dir, 'asked'), 'utf8')
  assert.match(asked, /keepalives_idle=10 keepalives_interval=5 keepalives_count=4 tcp_user_timeout=30000/)
})

test('a dump is refused where no tool is new enough', needs('pg'), async () => {
  const source = parse({ url: await (await postgres()).database('ddl') })
  await assert.rejects(
    readDdl(source, [], 'dump', signal),
    (error) => error instanceof Failure && error.code === 'UNSUPPORTED',
  )
})

/** Both phases, each twice, since a repeat must change nothing. */
async function copyDefinitions(
  source: PostgresConfig,
  target: PostgresConfig,
  style: 'dump' | 'tables',
): Promise<readonly CatalogTable[]> {
  const tables = await catalog(source)
  const ddl = await readDdl(
    source,
    tables.map((table) => tableSchema(table, 1)),
    style,
    signal,
  )
  for (const phase of ['before', 'before', 'after', 'after'] as const) {
    await applyDdl(target, ddl, phase, signal)
    if (phase === 'before') {
      const there = await catalog(target)
      assert.deepEqual(
        there.map((table) => table.table),
        tables.map((table) => table.table),
      )
      assert.deepEqual(
        there.map((table) => table.primaryKey?.index),
        tables.map((table) => table.primaryKey?.index),
      )
    }
  }
  return tables
}

async function catalog(config: PostgresConfig): Promise<readonly CatalogTable[]> {
  return await using(config, (client) => readCatalog(client, () => true))
}

async function query(config: PostgresConfig, text: string): Promise<void> {
  await using(config, (client) => client.query(text))
}

async function load(config: PostgresConfig, text: string): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), 'crossfade-ddl-'))
  const file = join(dir, 'load.sql')
  await writeFile(file, text.replaceAll(/^(?:DROP DATABASE|CREATE DATABASE|\\c ).*$/gim, ''))
  const url = `postgres://${config.user}@${config.host}:${config.port}/${config.database}`
  await run('psql', ['-q', '-v', 'ON_ERROR_STOP=1', '-f', file, url], { maxBuffer: 1 << 26 })
  await rm(dir, { recursive: true })
}

/** Columns, indexes, constraints, partitions and sequences of user tables, one line each. */
async function described(config: PostgresConfig): Promise<readonly string[]> {
  return await using(config, async (client) => {
    const { rows } = await client.query<{ line: string }>(`
    with t as (select c.oid, c.oid::regclass::text as name, c.relpartbound, c.reloptions from pg_class c
                where c.relkind in ('r', 'p') and c.relnamespace not in (select oid from pg_namespace where nspname ~ '^pg_|^information'))
    select format('%s column %s %s %s %s %s %s %s', t.name, row_number() over (partition by t.oid order by a.attnum), a.attname,
                  format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated, a.attidentity, pg_get_expr(f.adbin, f.adrelid)) as line
      from t join pg_attribute a on a.attrelid = t.oid left join pg_attrdef f on f.adrelid = t.oid and f.adnum = a.attnum
     where a.attnum > 0 and not a.attisdropped
    union all select pg_get_indexdef(i.indexrelid) || ' ' || i.indisvalid from t join pg_index i on i.indrelid = t.oid
    union all select format('%s constraint %s %s %s', t.name, k.conname, pg_get_constraintdef(k.oid), k.convalidated)
      from t join pg_constraint k on k.conrelid = t.oid where k.contype not in ('t', 'n')
    union all select format('%s in %s %s', t.name, i.inhparent::regclass, pg_get_expr(t.relpartbound, t.oid)) from t join pg_inherits i on i.inhrelid = t.oid
    union all select format('index %s in %s', i.inhrelid::regclass, i.inhparent::regclass) from pg_inherits i join pg_class c on c.oid = i.inhrelid where c.relkind in ('i', 'I')
    union all select format('sequence %s %s owned %s', s.seqrelid::regclass, to_jsonb(s) - 'seqrelid',
                            (select d.refobjid::regclass || '.' || d.refobjsubid from pg_depend d where d.objid = s.seqrelid and d.deptype in ('a', 'i')))
      from pg_sequence s
    union all select format('%s options %s', t.name, t.reloptions) from t
    union all select format('domain %s %s %s %s', t.oid::regtype, t.typnotnull, t.typdefault, (select string_agg(pg_get_constraintdef(k.oid), ' ') from pg_constraint k where k.contypid = t.oid and k.contype = 'c')) from pg_type t where t.typtype = 'd' and t.oid >= 16384
    order by 1`)
    return rows.map((row) => row.line)
  })
}

async function using<Result>(config: PostgresConfig, work: (client: pg.Client) => Promise<Result>): Promise<Result> {
  const client = await connect(config, { name: 'test' }, signal)
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}
