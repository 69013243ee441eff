import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  oddWriting,
  pagilaWriting,
  replayNumbered,
  startNumberedWriter,
  startRandomWriters,
} from '../support/fixture-writers.ts'
import {
  compareContents,
  definitionsOf,
  loadFixture,
  loadOddTables,
  needsFixture,
  sequencesOf,
  type Fixture,
} from '../support/fixtures.ts'
import { logConfig, uniqueName } from '../support/kills.ts'
import { sql } from '../support/postgres.ts'
import { needs, postgres } from '../support/servers.ts'
import { until, workplace, type Worker } from '../support/worker.ts'

type Options = { readonly mode?: string; readonly schema?: string; readonly log?: 'kafka' | 'embedded' }

async function configured(source: string, target: string, name: string, options: Options): Promise<string> {
  return `name: ${name}
mode: ${options.mode ?? 'hybrid'}
source: { type: postgres, url: "${source}" }
target: { type: postgres, url: "${target}" }
tables: { include: ["*.*"] }
log: ${await logConfig(options.log ?? 'kafka', 3)}
snapshot: { parallel: 2, chunkRows: 1000, schema: ${options.schema ?? 'auto'} }
apply: { lanes: 3, batchRows: 500 }
`
}

async function databases(fixture: Fixture, targetVersion: 15 | 18): Promise<{ source: string; target: string }> {
  const source = await (await postgres(15)).database(`${fixture}_source`)
  await loadFixture(source, fixture)
  return { source, target: await (await postgres(targetVersion)).database(`${fixture}_target`) }
}

/** Until all tables take changes as they come. */
async function live(target: string, worker: Worker): Promise<void> {
  const waiting = async (): Promise<readonly string[]> => {
    try {
      const rows = await sql<{ tables: number; left: number }>(
        target,
        'select count(*)::int as tables, (count(*) filter (where not live))::int as left from crossfade.copy',
      )
      const { tables = 0, left = 0 } = rows[0] ?? {}
      return tables > 0 && left === 0 ? [] : [`${left} of ${tables} tables are being copied`]
    } catch (error) {
      return [String(error)]
    }
  }
  await until(waiting, { seconds: 120, worker })
}

async function assertSameDefinitions(source: string, target: string): Promise<void> {
  const [wanted, found] = await Promise.all([definitionsOf(source), definitionsOf(target)])
  assert.deepEqual(
    { missing: wanted.filter((line) => !found.includes(line)), added: found.filter((line) => !wanted.includes(line)) },
    { missing: [], added: [] },
  )
}

/** Each sequence is at least as far as it was at the source when `least` was taken. */
async function assertSequences(target: string, least: Awaited<ReturnType<typeof sequencesOf>>): Promise<void> {
  const found = new Map((await sequencesOf(target)).map(({ name, steps }) => [name, steps]))
  const behind = least.filter(({ name, steps }) => (found.get(name) ?? -1) < steps)
  assert.deepEqual(
    behind.map(({ name, steps }) => `${name}: ${found.get(name)}, at the source ${steps}`),
    [],
  )
}

describe('pagila and odd tables, written to all the time', needs('pg15', 'pg', 'kafka'), () => {
  const cases = [
    { to: 15, schema: 'dump' },
    { to: 18, schema: 'tables' },
    { to: 18, schema: 'auto' },
  ] as const
  for (const { to, schema } of cases) {
    it(`from 15 to ${to}, definitions by ${schema}`, needsFixture('pagila'), async (t) => {
      const { source, target } = await databases('pagila', to)
      await loadOddTables(source)
      await using work = await workplace(await configured(source, target, uniqueName('pagila'), { schema }))
      const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
      t.diagnostic(`CROSSFADE_SEED=${seed}`)
      const least = await sequencesOf(source)
      await using writers = startRandomWriters(source, [...pagilaWriting, ...oddWriting], seed)
      const worker = work.run()
      await live(target, worker)
      t.diagnostic(`${writers.commits()} commits until live`)
      await sleep(2500)
      const counts = await writers.stop()
      t.diagnostic(`commits: ${counts.join(' ')}`)
      await until(async () => await compareContents(source, target), { seconds: 60, worker })
      const end = await worker.stop()
      assert.equal(end.code, 0, end.stderr)
      assert.deepEqual(await compareContents(source, target), [])
      await assertSameDefinitions(source, target)
      await assertSequences(target, least)
    })
  }
})

describe('chinook, written to all the time', needs('pg15', 'pg', 'kafka'), () => {
  const cases = [
    { to: 18, schema: 'dump', log: 'kafka' },
    { to: 15, schema: 'tables', log: 'embedded' },
  ] as const
  for (const { to, schema, log } of cases) {
    it(`from 15 to ${to}, definitions by ${schema}, log ${log}`, needsFixture('chinook'), async () => {
      const { source, target } = await chinook(to)
      await using work = await workplace(await configured(source, target, uniqueName('chinook'), { schema, log }))
      await using writer = startNumberedWriter(source)
      const worker = work.run()
      await live(target, worker)
      await sleep(2000)
      await writer.stop()
      await until(async () => await compareContents(source, target), { seconds: 60, worker })
      const end = await worker.stop()
      assert.equal(end.code, 0, end.stderr)
      await assertSameDefinitions(source, target)
    })
  }

  it('mode full ends by itself, with one exact state of the source', needsFixture('chinook'), async (t) => {
    const { source, target } = await chinook(18)
    const name = uniqueName('full')
    await using work = await workplace(await configured(source, target, name, { mode: 'full', log: 'kafka' }))
    await using writer = startNumberedWriter(source)
    const end = await work.run().ended
    assert.equal(end.code, 0, end.stdout + end.stderr)
    const last = await writer.stop()
    const [row] = await sql<{ n: number }>(target, 'select coalesce(max(n), 0)::int as n from journal')
    const reached = row?.n ?? 0
    t.diagnostic(`the copy is of transaction ${reached} of ${last}`)
    assert.ok(reached < last, 'nothing was written after the copy began')
    // The same transactions, up to the last one that the target has, in a database of their own.
    const expected = await (await postgres(15)).database('chinook_expected')
    await loadFixture(expected, 'chinook')
    await sql(expected, 'create table journal (n int primary key)')
    await replayNumbered(expected, reached)
    assert.deepEqual(await compareContents(expected, target), [])
    await assertSameDefinitions(source, target)
    const left = await sql(
      source,
      `select slot_name::text from pg_replication_slots where database = current_database() union all select pubname::text from pg_publication`,
    )
    assert.deepEqual(left, [])
  })

  it('mode incremental goes on from equal databases', needsFixture('chinook'), async () => {
    const { source, target } = await chinook(18)
    await loadFixture(target, 'chinook')
    await sql(target, 'create table journal (n int primary key)')
    await using work = await workplace(
      await configured(source, target, uniqueName('incremental'), { mode: 'incremental' }),
    )
    const worker = work.run()
    const slots = async (): Promise<readonly string[]> => {
      const found = await sql(
        source,
        'select 1 from pg_replication_slots where database = current_database() and active',
      )
      return found.length > 0 ? [] : ['nobody reads the source']
    }
    await until(slots, { seconds: 60, worker })
    await using writer = startNumberedWriter(source)
    await sleep(3000)
    assert.ok((await writer.stop()) > 100)
    await until(async () => await compareContents(source, target), { seconds: 60, worker })
    const end = await worker.stop()
    assert.equal(end.code, 0, end.stderr)
  })
})

/** With a table that says how far the writer is. */
async function chinook(targetVersion: 15 | 18): Promise<{ source: string; target: string }> {
  const made = await databases('chinook', targetVersion)
  await sql(made.source, 'create table journal (n int primary key)')
  return made
}
