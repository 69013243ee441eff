import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { compareTables, connected } from './shop.ts'

const run = promisify(execFile)
const folder = join(import.meta.dirname, '../../../shared/fixtures')

export type Fixture = 'pagila' | 'chinook'

/** Test options: skipped, by name, where a sample database is not beside the checkout. */
export function needsFixture(name: Fixture): { skip: string | false } {
  return { skip: existsSync(join(folder, `${name}.sql`)) ? false : `../shared/fixtures/${name}.sql is not here` }
}

/** Loads a sample database into an empty one. */
export async function loadFixture(url: string, name: Fixture): Promise<void> {
  const text = await readFile(join(folder, `${name}.sql`), 'utf8')
  // The file makes a database of its own and goes there.
  await psql(url, text.replaceAll(/^(?:DROP DATABASE|CREATE DATABASE|\\c ).*$/gm, ''))
}

/** Adds tables with what the sample databases lack. */
export async function loadOddTables(url: string): Promise<void> {
  await using client = await connected(url)
  await client.query(await readFile(new URL('odd-tables.sql', import.meta.url), 'utf8'))
}

async function psql(url: string, text: string): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), 'crossfade-fixture-'))
  try {
    const file = join(dir, 'load.sql')
    await writeFile(file, text)
    // One transaction: chinook is a statement a row or so, and each would wait for the disk.
    await run('psql', ['--no-psqlrc', '-q', '-1', '-v', 'ON_ERROR_STOP=1', '-f', file, url], { maxBuffer: 1 << 26 })
  } finally {
    await rm(dir, { recursive: true })
  }
}

const userSchemas = `not in ('information_schema', 'crossfade') and n.nspname !~ '^pg_'`

/** Tables with rows of their own, as names for SQL. */
async function tablesOf(url: string): Promise<readonly string[]> {
  await using client = await connected(url)
  const { rows } = await client.query<{ name: string }>(
    `select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind = 'r' and n.nspname ${userSchemas} order by 1`,
  )
  return rows.map(({ name }) => name)
}

/** What differs between the contents of two databases, each a sentence; which tables there are is read at both ends. */
export async function compareContents(source: string, target: string): Promise<readonly string[]> {
  try {
    const [tables, there] = await Promise.all([tablesOf(source), tablesOf(target)])
    const missing = tables.filter((name) => !there.includes(name)).map((name) => `${name} is missing at the target`)
    const added = there.filter((name) => !tables.includes(name)).map((name) => `${name} is only at the target`)
    if (missing.length + added.length > 0) return [...missing, ...added]
    return await compareTables(source, target, tables)
  } catch (error) {
    return [String(error)]
  }
}

/** Columns, defaults, identity, indexes, constraints, partitions and what sequences are made of and belong to: one line each. The same at both ends
 *  whatever their versions, except that NOT NULL is a constraint of its own from 18 on: it is read from the columns. */
export async function definitionsOf(url: string): Promise<readonly string[]> {
  await using client = await connected(url)
  await client.query(`set search_path to ''`)
  const { rows } = await client.query<{ line: string }>(
    `with tables as (
       select c.oid, format('%I.%I', n.nspname, c.relname) as name, c.relkind, c.relpartbound, c.reloptions
         from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p') and n.nspname ${userSchemas}
     )
     select format('%s column %s: %s, not null %s, generated "%s", identity "%s", default %s, collation %s', t.name, a.attname, format_type(a.atttypid, a.atttypmod),
                   a.attnotnull, a.attgenerated, a.attidentity, pg_get_expr(d.adbin, d.adrelid), nullif(a.attcollation, y.typcollation)::regcollation) as line
       from tables t join pg_attribute a on a.attrelid = t.oid join pg_type y on y.oid = a.atttypid
       left join pg_attrdef d on d.adrelid = t.oid and d.adnum = a.attnum
      where a.attnum > 0 and not a.attisdropped
     union all
     select format('%s columns: %s', t.name, (select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped))
       from tables t
     union all
     select format('%s, valid %s', pg_get_indexdef(i.indexrelid), i.indisvalid) from tables t join pg_index i on i.indrelid = t.oid
     union all
     select format('%s constraint %s: %s, validated %s', t.name, k.conname, pg_get_constraintdef(k.oid), k.convalidated)
       from tables t join pg_constraint k on k.conrelid = t.oid where k.contype not in ('t', 'n')
     union all
     select format('%s is part of %s %s', i.inhrelid::regclass, i.inhparent::regclass, pg_get_expr(c.relpartbound, c.oid))
       from pg_inherits i join pg_class c on c.oid = i.inhrelid
     union all
     select format('%s options %s', name, reloptions) from tables where reloptions is not null
     union all
     select format('sequence %I.%I: type %s, start %s, by %s, from %s to %s, cache %s, cycle %s, owned by %s', n.nspname, c.relname, format_type(s.seqtypid, null), s.seqstart,
                   s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
                   (select d.refobjid::regclass || '.' || d.refobjsubid from pg_depend d where d.objid = c.oid and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')))
       from pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace where n.nspname ${userSchemas}
     order by 1`,
  )
  return rows.map(({ line }) => line)
}

/** How far a sequence is: what comes next, in steps from its start; so a descending one counts upwards too. */
type Progress = { readonly name: string; readonly steps: number }

export async function sequencesOf(url: string): Promise<readonly Progress[]> {
  await using client = await connected(url)
  const { rows: names } = await client.query<{ name: string; start: string; by: string }>(
    `select format('%I.%I', n.nspname, c.relname) as name, s.seqstart::text as start, s.seqincrement::text as by
       from pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace
      where n.nspname ${userSchemas} order by 1`,
  )
  const found: Progress[] = []
  for (const { name, start, by } of names) {
    const { rows } = await client.query<{ steps: number }>(
      `select ((last_value - $1::bigint) / $2::bigint + is_called::int)::float8 as steps from ${name}`,
      [start, by],
    )
    found.push({ name, steps: rows[0]?.steps ?? 0 })
  }
  return found
}
