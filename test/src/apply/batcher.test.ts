import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createBatcher, type Batcher, type Step } from '../../../src/apply/batcher.ts'
import { lastSeq } from '../../../src/apply/partition.ts'
import { schemaReader } from '../../../src/avro/schema-ids.ts'
import { createPublisher, type Publisher } from '../../../src/capture/publisher.ts'
import type { Route } from '../../../src/change-log/topics.ts'
import {
  partitionName,
  tableName,
  type Checkpoint,
  type Effect,
  type Position,
  type TableSchema,
} from '../../../src/model.ts'
import { Op } from '../../../src/rows.ts'
import { memoryLog, type MemoryLog } from '../../support/memory-log.ts'
import { batchOf, positionOf, tableOf, valuesOf, type Change, type Row } from './rows-for-tests.ts'

const table = tableOf('orders', { pinned: true })
const other = tableOf('items', { pinned: true })
const keyless = tableOf('notes', { pinned: true, key: [], before: 'row' })
const topicOf = (schema: TableSchema): string => `shop.public.${schema.table.name}`
const routes: readonly Route[] = [table, other, keyless].map((schema) => {
  return { table: schema.table, topic: topicOf(schema), partitions: 1, pinned: true }
})
const partitions = routes.map(({ topic }) => ({ topic, partition: 0 }))
const at = (schema: TableSchema): string => `${topicOf(schema)}/0`
const signal = AbortSignal.timeout(30_000)

type Bench = {
  readonly log: MemoryLog
  readonly publisher: (epoch: number) => Publisher
  readonly batcher: Batcher
  readonly claimed: readonly Checkpoint[]
  /** Appends what the publisher has. */
  readonly send: (publisher: Publisher) => Promise<void>
  /** One pull into the batcher, its schemas loaded. */
  readonly pull: () => Promise<void>
}
async function bench(
  more: { readonly rows?: number; readonly checkpoint?: Partial<Checkpoint>; readonly load?: boolean } = {},
): Promise<Bench> {
  const log = memoryLog()
  const topics = [...partitions.map(({ topic }) => topic), 'shop.control']
  await log.open(
    topics.map((name) => ({ name, partitions: 1, cleanup: 'delete' })),
    signal,
  )
  await log.open([{ name: 'shop.schemas', partitions: 1, cleanup: 'compact' }], signal)
  const schemas = schemaReader(log, 'shop.schemas')
  const claimed = partitions.map((partition): Checkpoint => {
    const mark = { position: '' as Position, seq: 0 }
    return { ...partition, offset: 0, mark, captureEpoch: 0, claim: 'mine', loose: '' as Position, ...more.checkpoint }
  })
  const batcher = createBatcher({
    checkpoints: claimed,
    schemas,
    limits: { batchRows: more.rows ?? 100, batchBytes: 1e6 },
  })
  const pull = async (): Promise<void> => {
    batcher.add(await log.fetch(batcher.wanted(), 0, signal))
    while (batcher.missing !== undefined && more.load !== false) {
      await schemas.load(batcher.missing.id, signal)
      batcher.add(await log.fetch(batcher.wanted(), 0, signal))
    }
  }
  const publisher = (epoch: number): Publisher =>
    createPublisher({
      pipeline: 'shop',
      epoch,
      route: (id) => routes.find((route) => tableName(route.table) === tableName(id)),
      partitions,
      ends: [],
      clock: () => 0,
      limits: { roundBytes: 1e6, batchBytes: 1e6 },
    })
  const send = async (from: Publisher): Promise<void> => {
    while (!from.idle) from.landed(await log.append(from.take().round, signal))
  }
  return { log, publisher, batcher, claimed, send, pull }
}

const insert = (schema: TableSchema, id: number): Change => ({
  op: Op.insert,
  schema,
  row: [String(id), 'a', null, '1'],
})
const commit = (n: number, ...changes: readonly Change[]): ReturnType<typeof batchOf> =>
  batchOf([{ position: positionOf(n), changes }])

/** What a step says, briefly: rows by kind, and how far each partition gets. */
function told(step: Step | undefined): unknown {
  if (step === undefined) return undefined
  if (step.kind === 'arrive')
    return { barrier: step.barrier.mark.position, from: step.advance.from, to: step.advance.to.offset }
  const { groups, inOrder } = step.batch
  return {
    rows: groups
      .flatMap(({ kind, schema, rows }) =>
        Array.from({ length: rows.count }, (_, i) => {
          const row: Row = valuesOf(rows.bytes, rows.starts[i] ?? 0, rows.starts[i + 1] ?? 0)
          return `${kind} ${schema.table.name} ${row[0]}`
        }),
      )
      .toSorted(),
    inOrder: inOrder?.count ?? 0,
    to: step.advances.map(({ from, to }) => `${partitionName(to)} ${from}-${to.offset}`).toSorted(),
  }
}
function commitAll(batcher: Batcher): unknown[] {
  const steps: unknown[] = []
  for (let step = batcher.next(); step !== undefined; step = batcher.next()) {
    steps.push(told(step))
    if (step.kind === 'batch') batcher.lost([])
    else break
  }
  return steps
}
const offsetOf = (batcher: Batcher, schema: TableSchema): number | undefined =>
  batcher.wanted().find((from) => partitionName(from) === at(schema))?.offset

test('one pull of several tables is one batch, and its memory is not the log’s', async () => {
  const { publisher, batcher, send, pull, log } = await bench()
  const from = publisher(1)
  from.add(commit(16, insert(table, 1), insert(other, 2), insert(keyless, 3), insert(table, 4)))
  await send(from)
  await pull()
  // The next pull overwrites what was lent.
  const next = await log.fetch(batcher.wanted(), 0, signal)
  assert.deepEqual(commitAll(batcher), [
    {
      rows: ['upsert items 2', 'upsert orders 1', 'upsert orders 4'],
      inOrder: 1,
      to: [`${at(other)} 0-1`, `${at(keyless)} 0-1`, `${at(table)} 0-2`],
    },
  ])
  batcher.add(next)
  assert.equal(batcher.next(), undefined)
})

test('a batch is cut at the end of a source transaction', async () => {
  const { publisher, batcher, send, pull } = await bench({ rows: 2 })
  const from = publisher(1)
  from.add(commit(16, insert(table, 1)))
  from.add(commit(32, insert(table, 2), insert(table, 3), insert(table, 4)))
  from.add(commit(48, insert(table, 5)))
  await send(from)
  await pull()
  const ends = commitAll(batcher).map((step) => (step as { to: string[] }).to)
  assert.deepEqual(ends, [[`${at(table)} 0-4`], [`${at(table)} 4-5`]])
})

test('repeats and zombies are passed over, and only move the checkpoint, once a pull', async () => {
  const { publisher, batcher, send, pull, log } = await bench()
  const zombie = publisher(1)
  for (const round of zombie.opening()) zombie.landed(await log.append(round, signal))
  zombie.add(commit(16, insert(table, 1)))
  await send(zombie)
  await pull()
  assert.equal(commitAll(batcher).length, 1)
  const successor = publisher(2)
  for (const round of successor.opening()) successor.landed(await log.append(round, signal))
  successor.add(commit(16, insert(table, 1)))
  await send(successor)
  zombie.add(commit(32, insert(table, 2)))
  await send(zombie)
  await pull()
  assert.deepEqual(commitAll(batcher), [
    { rows: [], inOrder: 0, to: [`${at(other)} 1-2`, `${at(keyless)} 1-2`, `${at(table)} 2-5`] },
  ])
  assert.deepEqual(batcher.dropped, { repeats: 1, zombies: 1 })
  assert.equal(batcher.applied, 1, 'neither repeats nor control records are changes')
})

test('an unknown schema stops its partition before the record, until it is loaded', async () => {
  const { publisher, batcher, send, pull } = await bench({ load: false })
  const from = publisher(1)
  from.add(commit(16, insert(table, 1)))
  await send(from)
  await pull()
  assert.equal(typeof batcher.missing?.id, 'number')
  assert.equal(batcher.next(), undefined)
  assert.equal(offsetOf(batcher, table), 0)
})

test('a change after the hold waits, and the checkpoint says that everything before it is in', async () => {
  const { publisher, batcher, send, pull, claimed } = await bench({ checkpoint: { hold: positionOf(20) } })
  const from = publisher(1)
  from.add(commit(16, insert(table, 1)))
  from.add(commit(32, insert(table, 2)))
  await send(from)
  await pull()
  const step = batcher.next()
  assert.ok(step?.kind === 'batch')
  assert.deepEqual(step.advances[0]?.to.mark, { position: positionOf(20), seq: lastSeq })
  assert.equal(step.advances[0]?.to.offset, 1)
  assert.ok(
    step.batch.groups.every(({ mayMiss }) => mayMiss),
    'rows may be missing until the table is live',
  )
  batcher.lost([])
  assert.equal(offsetOf(batcher, table), undefined)
  // A checkpoint read before the commit: its offset is old, its hold is news.
  const { hold: _, ...free } = claimed[0] ?? assert.fail()
  batcher.resume([{ ...free, claim: 'someone else’s' }])
  assert.equal(offsetOf(batcher, table), undefined)
  batcher.resume([{ ...free, loose: positionOf(40) }])
  assert.equal(offsetOf(batcher, table), 1)
  from.add(commit(48, insert(table, 3)))
  await send(from)
  await pull()
  const loose = batcher.next()
  assert.ok(loose?.kind === 'batch')
  assert.deepEqual([loose.batch.mayMiss, loose.advances[0]?.to.offset], [true, 2])
  batcher.lost([])
  const strict = batcher.next()
  assert.ok(strict?.kind === 'batch')
  assert.deepEqual([strict.batch.mayMiss, strict.advances[0]?.to.offset], [false, 3])
})

test('a hold on everything holds without a mark, and control records pass', async () => {
  const { publisher, batcher, send, pull, log } = await bench({ checkpoint: { hold: '' as Position } })
  const from = publisher(1)
  for (const round of from.opening()) from.landed(await log.append(round, signal))
  from.add(commit(16, insert(table, 1)))
  await send(from)
  await pull()
  const step = batcher.next()
  assert.ok(step?.kind === 'batch')
  const mine = step.advances.find(({ to }) => partitionName(to) === at(table))?.to
  assert.deepEqual([mine?.offset, mine?.mark.position, mine?.captureEpoch], [1, '', 1])
  batcher.lost([])
  assert.equal(batcher.next(), undefined)
  assert.equal(offsetOf(batcher, table), undefined)
})

test('a partition stands on a barrier until it is passed; others go on', async () => {
  const { publisher, batcher, send, pull } = await bench()
  const from = publisher(1)
  const effect: Effect = {
    kind: 'truncate',
    tables: [table.table, other.table],
    cascade: false,
    restartCounters: false,
  }
  from.add(commit(16, insert(table, 1)))
  from.add({ kind: 'effect', effect, mark: { position: positionOf(32), seq: 0 }, committedAt: 1 })
  from.add(commit(48, insert(table, 2), insert(keyless, 3)))
  await send(from)
  await pull()
  const first = batcher.next()
  assert.deepEqual(told(first), {
    rows: ['upsert orders 1'],
    inOrder: 1,
    to: [`${at(keyless)} 0-1`, `${at(table)} 0-1`],
  })
  batcher.lost([])
  assert.deepEqual(told(batcher.next()), { barrier: positionOf(32), from: 1, to: 2 })
  assert.deepEqual(told(batcher.next()), { barrier: positionOf(32), from: 0, to: 1 }, 'the other one waits as well')
  const last = batcher.next()
  assert.equal(last, undefined, 'each is offered once')
  assert.deepEqual(batcher.wanted().map(partitionName), [at(keyless)])
  batcher.add([])
  const again = batcher.next()
  assert.ok(again?.kind === 'arrive')
  batcher.pass(again.barrier)
  const second = batcher.next()
  assert.ok(second?.kind === 'arrive')
  batcher.pass(second.barrier)
  assert.equal(batcher.next(), undefined)
  await pull()
  assert.deepEqual(commitAll(batcher), [{ rows: ['upsert orders 2'], inOrder: 0, to: [`${at(table)} 2-3`] }])
})

test('a lost partition is put aside, the others’ changes come again', async () => {
  const { publisher, batcher, send, pull, claimed } = await bench()
  const from = publisher(1)
  from.add(commit(16, insert(table, 1), insert(other, 2)))
  await send(from)
  await pull()
  const step = batcher.next()
  assert.ok(step?.kind === 'batch')
  batcher.lost([{ topic: topicOf(table), partition: 0 }])
  assert.deepEqual(batcher.gone.map(partitionName), [at(table)])
  assert.deepEqual(commitAll(batcher), [{ rows: ['upsert items 2'], inOrder: 0, to: [`${at(other)} 0-1`] }])
  assert.equal(offsetOf(batcher, table), undefined)
  batcher.resume(claimed.slice(0, 1).map((checkpoint) => ({ ...checkpoint, claim: 'anew' })))
  assert.equal(offsetOf(batcher, table), undefined, 'another’s claim is not ours')
  assert.equal(batcher.fenced?.topic, topicOf(table))
  batcher.resume(
    claimed.slice(0, 1).map((checkpoint) => ({ ...checkpoint, claim: 'anew' })),
    true,
  )
  await pull()
  const next = batcher.next()
  assert.ok(next?.kind === 'batch')
  assert.equal(next.advances[0]?.to.claim, 'anew')
  assert.equal(batcher.fenced, undefined)
})

test('what a pull brings for a partition that was set back meanwhile is ignored', async () => {
  const { publisher, batcher, send, pull, claimed, log } = await bench()
  const from = publisher(1)
  from.add(commit(16, insert(table, 1)))
  await send(from)
  await pull()
  from.add(commit(32, insert(table, 2)))
  await send(from)
  const early = await log.fetch(batcher.wanted(), 0, signal)
  const step = batcher.next()
  assert.ok(step?.kind === 'batch')
  batcher.lost([{ topic: topicOf(table), partition: 0 }])
  batcher.resume(claimed)
  batcher.add(early)
  assert.equal(batcher.next(), undefined)
  await pull()
  assert.deepEqual(commitAll(batcher), [
    { rows: ['upsert orders 1', 'upsert orders 2'], inOrder: 0, to: [`${at(table)} 0-2`] },
  ])
})

test('a hold that moves while a batch is at the target takes effect behind it', async () => {
  const { publisher, batcher, send, pull, claimed } = await bench()
  const from = publisher(1)
  from.add(commit(16, insert(table, 1)))
  await send(from)
  await pull()
  assert.equal(batcher.next()?.kind, 'batch')
  batcher.resume([{ ...(claimed[0] ?? assert.fail()), hold: positionOf(20) }])
  batcher.lost([])
  assert.equal(offsetOf(batcher, table), 1)
  from.add(commit(32, insert(table, 2)))
  await send(from)
  await pull()
  const step = batcher.next()
  assert.ok(step?.kind === 'batch')
  assert.deepEqual(step.batch.groups, [])
  assert.deepEqual(step.advances[0]?.to.mark, { position: positionOf(20), seq: lastSeq })
  assert.equal(step.advances[0]?.to.hold, positionOf(20))
})

test('a rejected batch can wait for the rest of its transaction', async () => {
  const { publisher, batcher, send, pull } = await bench()
  const from = publisher(1)
  from.add(commit(16, insert(table, 1)))
  await send(from)
  await pull()
  assert.equal(batcher.next()?.kind, 'batch')
  assert.equal(batcher.putBack(), true)
  from.add(batchOf([{ position: positionOf(16), firstSeq: 4, changes: [insert(table, 2)] }]))
  await send(from)
  await pull()
  const step = batcher.next()
  assert.ok(step?.kind === 'batch')
  const ordered = step.batch.ordered()
  assert.equal(ordered.count, 2)
  assert.deepEqual(
    ordered.transactions.map(({ first, firstSeq }) => [first, firstSeq]),
    [[0, 0]],
  )
})
