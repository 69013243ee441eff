import assert from 'node:assert/strict'
import { suite, test } from 'node:test'
import pg from 'pg'
import { parse } from '../../../connectors/postgres/config.ts'
import { openRetention, type Retention } from '../../../connectors/postgres/retention.ts'
import { silent } from '../../../src/logger.ts'
import { pgSourceBed, type PgSourceBed } from '../../support/pg-source.ts'
import { needs, postgres } from '../../support/servers.ts'

const never = new AbortController().signal
const another = 'alter table a drop column n; alter table a add column n int'

/** A retention beside the bed's own; `before` is called with each statement before the server is. */
async function watched(
  bed: PgSourceBed,
  before: (statement: string) => Promise<void>,
): Promise<{ readonly retention: Retention; readonly control: pg.Client }> {
  const control = new pg.Client({ connectionString: bed.url })
  await control.connect()
  const query = control.query.bind(control) as (...all: unknown[]) => Promise<unknown>
  Object.assign(control, {
    query: async (...all: unknown[]) => {
      await before(String(all[0]))
      return await query(...all)
    },
  })
  const { pipeline, name } = bed
  const context = { pipeline, dir: '', log: silent }
  const config = parse({ url: bed.url })
  const place = { control, config, context, name, serverVersion: 180_000, snapshotLimitMs: 10_000 }
  return { control, retention: openRetention(bed.state, place) }
}
const isLook = (statement: string): boolean => statement.includes('pg_current_snapshot()::text')

suite('a column dropped and added again under its name while tables are taken in', needs('pg'), () => {
  test('H26: behind the place of the first slot it ends the start, and the next one begins', async () => {
    await using bed = await pgSourceBed(
      await (await postgres(18)).database('retain'),
      'create table a (id int primary key, n int); insert into a values (1, 1)',
    )
    await using source = await bed.open()
    const tables = await bed.tables(source)
    let done = false
    const { retention, control } = await watched(bed, async (statement) => {
      if (done || !isLook(statement)) return
      const { rowCount } = await bed.client.query(`select from pg_replication_slots where slot_name = '${bed.name}'`)
      if (rowCount === 0) return
      done = true
      await bed.client.query('update a set n = 2')
      await bed.client.query(another)
    })
    try {
      await assert.rejects(retention.retain(tables, never), { code: 'TABLE_CHANGED' })
      assert.ok(done)
      const left = `select slot_name from pg_replication_slots where slot_name = $1
                    union all select pubname from pg_publication where pubname = $1`
      assert.deepEqual((await bed.client.query(left, [bed.name])).rows, [])
      const snapshot = await retention.retain(tables, never)
      assert.ok(snapshot)
      await snapshot[Symbol.asyncDispose]()
    } finally {
      await control.end()
    }
  })

  test('H26: of a table that is added it is noticed by the next check', async () => {
    await using bed = await pgSourceBed(
      await (await postgres(18)).database('retain'),
      'create table b (id int primary key); create table a (id int primary key, n int)',
    )
    await using source = await bed.open()
    const tables = await bed.tables(source)
    const [b] = tables.filter(({ table }) => table.name === 'b')
    assert.ok(b)
    await (await source.retain([b], never))?.[Symbol.asyncDispose]()
    let looked = false
    let done = false
    const { retention, control } = await watched(bed, async (statement) => {
      if (isLook(statement) || !/pg_replication_slots/.test(statement)) looked ||= isLook(statement)
      else if (looked && !done) {
        done = true
        await bed.client.query(another)
      }
    })
    try {
      assert.equal(await retention.retain(tables, never), undefined)
      assert.ok(done)
      await assert.rejects(retention.check(never), { code: 'TABLE_CHANGED' })
    } finally {
      await control.end()
    }
  })
})

suite('a key that is another one when the tables are recorded than when they were read', needs('pg'), () => {
  const rekey = 'alter table a drop constraint a_pkey, add primary key (n)'
  const changes: readonly (readonly [string, string])[] = [
    ['select', rekey],
    ['alter table a replica identity full', rekey],
    ['select', 'alter table a replica identity full'],
    [
      'create unique index i on a (n); alter table a replica identity using index i',
      'alter table a replica identity default',
    ],
    ['select', 'alter table a drop constraint a_pkey'],
    ['alter table a drop constraint a_pkey; alter table a replica identity full', 'alter table a add primary key (id)'],
  ]
  for (const [given, change] of changes) {
    test(`H26: ends the start, and the next one begins: ${given}; then ${change}`, async () => {
      await using bed = await pgSourceBed(
        await (await postgres(18)).database('retain'),
        `create table a (id int primary key, n int not null); create table b (id int primary key); ${given}`,
      )
      await using source = await bed.open()
      const tables = await bed.tables(source)
      const b = tables.filter(({ table }) => table.name === 'b')
      await bed.client.query(change)
      const unsteady = { code: 'TABLE_CHANGED', message: /key|identity/ }
      await assert.rejects(source.retain(tables, never), unsteady)
      await (await source.retain(b, never))?.[Symbol.asyncDispose]()
      await assert.rejects(source.retain(tables, never), unsteady, 'where it is added')
      assert.equal(await source.retain(await bed.tables(source), never), undefined)
    })
  }

  test('H26: ends the start from a slot made by hand', async () => {
    await using bed = await pgSourceBed(
      await (await postgres(18)).database('retain'),
      'create table a (id int primary key, n int not null)',
    )
    await using source = await bed.open()
    const tables = await bed.tables(source)
    await bed.client.query(rekey)
    await bed.client.query(`create publication ${bed.name} for table only a`)
    const { rows } = await bed.client.query<{ lsn: string }>(
      `select lsn from pg_create_logical_replication_slot('${bed.name}', 'pgoutput')`,
    )
    const startAt = rows[0]?.lsn ?? ''
    await assert.rejects(source.adopt?.(tables, startAt, never) ?? Promise.resolve(), { code: 'TABLE_CHANGED' })
    await source.adopt?.(await bed.tables(source), startAt, never)
  })
})

suite('a primary key that is changed behind the record, where whole old rows are sent', needs('pg'), () => {
  const full = async (key: string): Promise<PgSourceBed> =>
    await pgSourceBed(
      await (await postgres(18)).database('retain'),
      `create table a (id int not null, n int not null ${key}); alter table a replica identity full`,
    )

  test('H26: ends with TABLE_CHANGED: rows would be told apart by what tells them apart no more', async () => {
    await using bed = await full(', primary key (id)')
    await using source = await bed.open()
    await bed.retain(source)
    await bed.client.query('alter table a drop constraint a_pkey, add primary key (id, n)')
    await assert.rejects(source.health(never), { code: 'TABLE_CHANGED', message: /replica identity or key changed/ })
  })

  test('H26: of a table that began without one, it changes nothing', async () => {
    await using bed = await full('')
    await using source = await bed.open()
    await bed.retain(source)
    await bed.client.query('alter table a add primary key (id)')
    await source.health(never)
  })
})
