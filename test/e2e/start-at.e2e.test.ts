import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { uniqueName } from '../support/kills.ts'
import { sql } from '../support/postgres.ts'
import { blocker, configure, createThings, scene, type Scene } from '../support/scene.ts'
import { needs, postgres } from '../support/servers.ts'
import { until, type Worker } from '../support/worker.ts'

type Databases = { readonly name: string; readonly source: string; readonly target: string }

async function databases(): Promise<Databases> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('start_source'), await pg.database('start_target')]
  await createThings(source)
  await createThings(target)
  return { name: uniqueName('start'), source, target }
}
async function beginAt({ name, source, target }: Databases, startAt: string): Promise<Scene> {
  return await scene({ name, source, target, mode: 'incremental', more: `startAt: "${startAt}"` })
}
async function makeSlot({ name, source }: Databases): Promise<string> {
  const [row] = await sql<{ lsn: string }>(
    source,
    `select lsn from pg_create_logical_replication_slot('crossfade_${name}', 'pgoutput')`,
  )
  return row?.lsn ?? ''
}
async function endOfLog(url: string): Promise<string> {
  const [row] = await sql<{ lsn: string }>(url, 'select pg_current_wal_insert_lsn() as lsn')
  return row?.lsn ?? ''
}
/** The rows, but for one that only the source has. */
async function untilFollowed(at: Scene, worker: Worker): Promise<void> {
  const rows = `select md5(string_agg(x::text, ',' order by x::text collate "C")) as md5 from thing x where id <> -1`
  await until(
    async () => {
      const [from, to] = await Promise.all([sql(at.source, rows), sql(at.target, rows)])
      return from[0]?.['md5'] === to[0]?.['md5'] ? [] : ['rows differ']
    },
    { seconds: 80, worker },
  )
}

describe('incremental from a slot that was made by hand', { ...needs('pg'), concurrency: 2 }, () => {
  it('brings what commits from startAt on and nothing before, goes on after a kill, and asks for startAt only once', async () => {
    const both = await databases()
    const slot = `crossfade_${both.name}`
    await sql(both.source, `create publication ${slot} for table only thing`)
    const made = await makeSlot(both)
    await sql(both.source, `insert into thing values (-1, 'before startAt, and not at the target')`)
    const startAt = await endOfLog(both.source)
    await sql(both.source, `insert into thing select i, 'new' from generate_series(5001, 5500) i`)
    await sql(
      both.source,
      `update thing set name = 'changed' where id between 1 and 10; delete from thing where id = 11`,
    )

    const before = await beginAt(both, '0/1')
    const early = blocker(await before.refused(), 'source.start')
    assert.equal(early.observed, `slot ${slot} keeps changes from ${made} on only`)
    assert.match(early.next ?? '', new RegExp(`startAt: "${made}"`))
    await before[Symbol.asyncDispose]()
    const beyond = await beginAt(both, 'FFFF/0')
    assert.match(blocker(await beyond.refused(), 'source.start').observed ?? '', /the source’s log ends at/)
    await beyond[Symbol.asyncDispose]()

    await using pipeline = await beginAt(both, startAt)
    const ready = await pipeline.command(['check'])
    assert.equal(ready.code, 0, ready.stdout)
    const first = pipeline.run()
    await untilFollowed(pipeline, first)
    await sql(both.source, `update thing set name = 'again' where id between 5 and 20`)
    await first.kill9()
    await sql(both.source, `insert into thing values (6000, 'while nobody ran'); delete from thing where id = 500`)
    const second = pipeline.run()
    await untilFollowed(pipeline, second)
    assert.deepEqual(await sql(both.target, 'select * from thing where id = -1'), [])
    assert.equal((await second.stop()).code, 0)
    const confirmed = `select confirmed_flush_lsn > '${startAt}' as passed from pg_replication_slots where slot_name = $1`
    assert.deepEqual(await sql(both.source, confirmed, [slot]), [{ passed: true }])
    const again = await pipeline.command(['check'])
    assert.equal(again.code, 0, again.stdout)
  })

  it('begins at the slot’s own place, if that is startAt', async () => {
    const both = await databases()
    await sql(both.source, `create publication crossfade_${both.name} for table only thing`)
    const made = await makeSlot(both)
    await sql(both.source, `delete from thing where id % 2 = 0`)
    await using pipeline = await beginAt(both, made)
    const worker = pipeline.run()
    await untilFollowed(pipeline, worker)
    assert.equal((await worker.stop()).code, 0)
  })

  it('keeps to the startAt it began with: another one is refused, none is needed any more', async () => {
    const both = await databases()
    await sql(both.source, `create publication crossfade_${both.name} for table only thing`)
    await makeSlot(both)
    await sql(both.source, `insert into thing values (-1, 'before startAt, and not at the target')`)
    const startAt = await endOfLog(both.source)
    await sql(both.source, `insert into thing values (5001, 'new'); delete from thing where id = 11`)
    await using pipeline = await beginAt(both, startAt)
    // Before anything but the record says where it began.
    const killed = await pipeline.command(['run'], { CROSSFADE_FAILPOINT: 'setup.after-begun' })
    assert.equal(killed.signal, 'SIGKILL', killed.stdout + killed.stderr)

    const choice = { include: ['public.*'], mode: 'incremental' } as const
    const now = await endOfLog(both.source)
    await configure(pipeline, { ...choice, more: `startAt: "${now}"` })
    const told = blocker(await pipeline.refused(), 'startAt')
    assert.match(told.observed ?? '', new RegExp(`^startAt: ${now}, but this pipeline has begun at ${startAt} `))
    const check = await pipeline.command(['check'])
    assert.equal(check.code, 1, check.stdout)
    assert.match(check.stdout, /Take startAt out of the file/)

    await configure(pipeline, choice)
    const worker = pipeline.run()
    await untilFollowed(pipeline, worker)
    assert.deepEqual(await sql(both.target, 'select * from thing where id = -1'), [])
    assert.equal((await worker.stop()).code, 0)
  })

  it('demands the slot, and a publication that is older than it (H9)', async () => {
    const both = await databases()
    const slot = `crossfade_${both.name}`
    // What stands further back hides how old a publication is.
    await sql(both.source, `select pg_create_logical_replication_slot('older_${both.name}', 'pgoutput')`)
    await using pipeline = await beginAt(both, await endOfLog(both.source))
    const missing = blocker(await pipeline.refused(), 'source.start')
    assert.equal(missing.observed, `there is no slot ${slot}`)
    await makeSlot(both)
    await sql(both.source, `insert into thing values (7000, 'never published')`)
    const unpublished = await beginAt(both, await endOfLog(both.source))
    assert.equal(blocker(await unpublished.refused(), 'source.start').observed, `there is no publication ${slot}`)
    await sql(both.source, `create publication ${slot} for table only thing`)
    const young = await unpublished.command(['check', '--json'])
    assert.equal(young.code, 1, young.stdout)
    assert.match(
      young.stdout,
      /"level":"blocker","observed":"publication \w+ was made or altered at [0-9A-F/]+: what was written between/,
    )
    const [left] = await sql<{ slots: number }>(
      both.source,
      `select count(*)::int as slots from pg_replication_slots where slot_name like 'crossfade_look%'`,
    )
    assert.deepEqual(left, { slots: 0 })
    // Made before startAt, behind the slot's beginning: only transactions open then can lack something.
    await configure(unpublished, {
      include: ['public.*'],
      mode: 'incremental',
      more: `startAt: "${await endOfLog(both.source)}"`,
    })
    const between = await unpublished.command(['check', '--json'])
    assert.equal(between.code, 3, between.stdout)
    assert.match(between.stdout, /was made or altered at [0-9A-F/]+, after slot/)
    // Made anew in the right order: never a blocker, whatever hides it.
    await sql(both.source, `select pg_drop_replication_slot('${slot}')`)
    await makeSlot(both)
    await sql(both.source, `create table beside (id int); insert into beside select generate_series(1, 1000)`)
    const choice = {
      include: ['public.thing'],
      mode: 'incremental',
      more: `startAt: "${await endOfLog(both.source)}"`,
    } as const
    await configure(unpublished, choice)
    const older = await unpublished.command(['check', '--json'])
    assert.match(older.stdout, /"level":"warning","observed":"publication \w+ was there when slot \w+ began at/)
    await sql(both.source, `alter publication ${slot} set table only thing, only beside`)
    await configure(unpublished, { ...choice, include: ['public.*'] })
    const altered = await unpublished.command(['check', '--json'])
    assert.equal(altered.code, 1, altered.stdout)
    assert.match(altered.stdout, /was made or altered at/)
    for (const one of [slot, `older_${both.name}`]) await sql(both.source, `select pg_drop_replication_slot('${one}')`)
    await unpublished[Symbol.asyncDispose]()
  })
})
