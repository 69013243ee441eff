import assert from 'node:assert/strict'
import { after, before, suite, test } from 'node:test'
import { parseLsn } from '../../../connectors/postgres/position.ts'
import { copySlot, takeCommits } from '../../../connectors/postgres/start-queries.ts'
import type { Finding } from '../../../src/connector.ts'
import { pgSourceBed, type PgSourceBed } from '../../support/pg-source.ts'
import { startPostgres, type PostgresServer, type PostgresVersion } from '../../support/postgres.ts'
import { needs } from '../../support/servers.ts'

const never = new AbortController().signal
/** Of their own: what others' slots keep decides what can be told. */
const servers = new Map<PostgresVersion, PostgresServer>()

let databases = 0

async function bedWithSlot(version: PostgresVersion): Promise<{ readonly bed: PgSourceBed; readonly from: string }> {
  const bed = await pgSourceBed(
    (await servers.get(version)?.createDatabase(`start${databases++}`)) ?? '',
    `create table a (id int primary key, n int not null, m int);
     create table b (id int primary key, name text); insert into a values (1, 1, 1)`,
  )
  await bed.client.query(`create publication ${bed.name} for table only a, only b`)
  const { rows } = await bed.client.query<{ lsn: string }>(
    `select lsn from pg_create_logical_replication_slot('${bed.name}', 'pgoutput')`,
  )
  await bed.client.query('insert into a values (2, 2, 2)')
  return { bed, from: rows[0]?.lsn ?? '' }
}
async function endOfLog(bed: PgSourceBed): Promise<string> {
  const { rows } = await bed.client.query<{ lsn: string }>('select pg_current_wal_insert_lsn() as lsn')
  return rows[0]?.lsn ?? ''
}
/** What the preflight says of the place to begin at, and whether a start from there begins. */
async function startAt(
  bed: PgSourceBed,
  place: string,
): Promise<{ readonly found: readonly Finding[]; readonly code: unknown }> {
  await using source = await bed.open()
  const found = await source.check(({ schema }) => schema === 'public', never, place)
  const start =
    source.adopt?.(await bed.tables(source), place, never) ?? Promise.reject(new Error('it cannot begin there'))
  const code = await start.then(
    () => undefined,
    (error: unknown) => (error instanceof Error && 'code' in error ? error.code : error),
  )
  return { found: found.filter(({ id }) => id.startsWith('source.start')), code }
}

suite('a table that was altered since the slot was made by hand', needs('pg', 'pg14'), () => {
  before(async () => {
    for (const version of [14, 18] as const) servers.set(version, await startPostgres({ version }))
  })
  after(async () => {
    for (const server of servers.values()) await server[Symbol.asyncDispose]()
  })
  const changes: readonly (readonly [string, string, PostgresVersion])[] = [
    ['a column dropped and added again', 'alter table a drop column m; alter table a add column m int', 18],
    ['a column dropped and added again', 'alter table a drop column m; alter table a add column m int', 14],
    ['a column rewritten to its own type', 'alter table a alter column m type int using m + 1', 18],
    ['names exchanged', 'alter table a rename m to x; alter table a rename n to m; alter table a rename x to n', 18],
    ['another key', 'alter table a drop constraint a_pkey; alter table a add primary key (n)', 18],
  ]
  for (const [what, change, version] of changes) {
    test(`H26: ${what} is a blocker for rows from before, and none for those behind it (${version})`, async () => {
      const { bed, from } = await bedWithSlot(version)
      await using _ = bed
      await bed.client.query(change)
      await bed.client.query('insert into a values (3, 3, 3)')
      const early = await startAt(bed, from)
      const [worst] = early.found
      assert.equal(worst?.level, 'blocker')
      assert.match(worst.observed, /^columns or key of public\.a were altered at [0-9A-F/]+: rows before/)
      assert.equal(early.found.length, 1, 'nothing is said of the other table')
      assert.equal(early.code, 'SLOT_LOST')
      const behind = await startAt(bed, await endOfLog(bed))
      assert.deepEqual(
        behind.found.map(({ level }) => level),
        ['ok'],
      )
      assert.equal(behind.code, undefined)
    })
  }

  test('H26: what alters neither columns nor key is no hindrance', async () => {
    const { bed, from } = await bedWithSlot(18)
    await using _ = bed
    for (const statement of [
      'vacuum (freeze, analyze) a',
      'vacuum full a',
      'truncate b',
      'create index on a (m)',
      'grant select on a to public',
    ])
      await bed.client.query(statement)
    const { found, code } = await startAt(bed, from)
    assert.deepEqual(
      found.map(({ level }) => level),
      ['ok'],
    )
    assert.equal(code, undefined)
  })

  test('H26: where a part of a transaction altered it, what cannot be seen is unknown', async () => {
    const { bed, from } = await bedWithSlot(18)
    await using _ = bed
    await bed.client.query(
      'begin; insert into b values (1); savepoint s; alter table a add column x int; release s; commit',
    )
    const early = await startAt(bed, from)
    assert.deepEqual(
      early.found.map(({ level, observed }) => [level, observed]),
      [['unknown', `whether columns and key of public.a were altered since slot ${bed.name} began cannot be seen`]],
    )
    const behind = await startAt(bed, await endOfLog(bed))
    assert.deepEqual(
      behind.found.map(({ level }) => level),
      ['ok'],
    )
  })

  for (const version of [14, 18] as const)
    test(`is found behind a large transaction whose rows the server does not write out as text (${version})`, async () => {
      const { bed, from } = await bedWithSlot(version)
      await using _ = bed
      await bed.client.query(`insert into b select i, repeat(md5(i::text), 32) from generate_series(1, 20000) i`)
      await bed.client.query('alter table a add column x int')
      const { rows } = await bed.client.query<{ xid: string }>(
        `select xmin::text as xid from pg_attribute where attrelid = 'a'::regclass and attname = 'x'`,
      )
      const xids = rows.map(({ xid }) => xid)
      const copy = await copySlot(bed.client, bed.name)
      await bed.client.query('set temp_file_limit = 0')
      const { found } = await takeCommits(bed.client, copy, xids, { bytes: 2 ** 29, limitMs: 60_000 })
      assert.deepEqual(
        found.map(({ xid }) => xid),
        xids,
      )
      assert.ok(parseLsn(found[0]?.commit ?? '0/0') > parseLsn(from))
    })
})
