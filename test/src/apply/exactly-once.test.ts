import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { admit } from '../../../src/apply/admit.ts'
import { applyLane } from '../../../src/apply/apply.ts'
import { demandKnown } from '../../../src/apply/known-log.ts'
import { createBatcher } from '../../../src/apply/batcher.ts'
import { decodeControl } from '../../../src/avro/control.ts'
import { readPrefix } from '../../../src/avro/decoder.ts'
import { schemaReader } from '../../../src/avro/schema-ids.ts'
import { capture, readTail } from '../../../src/capture/capture.ts'
import { placeOf, type Place } from '../../../src/capture/published.ts'
import { createPublisher } from '../../../src/capture/publisher.ts'
import { controlTopic, schemasTopic, topicName, type Route } from '../../../src/change-log/topics.ts'
import type { Source, SourceEvent } from '../../../src/connector.ts'
import {
  comparePositions,
  origin,
  tableName,
  type Effect,
  type Position,
  type TableSchema,
  type TopicPartition,
  heartbeatPrefix,
} from '../../../src/model.ts'
import { Op } from '../../../src/rows.ts'
import { memoryLog, type MemoryLog, type MemoryLogData } from '../../support/memory-log.ts'
import { change, modelTarget, sorted, type Content, type ModelTarget } from './model-target.ts'
import { batchOf, positionOf, tableOf, type Change, type Row, type Value } from './rows-for-tests.ts'

const pipeline = 'shop'
const wide = tableOf('wide')
const pinned = tableOf('pinned', {
  pinned: true,
  columns: wide.columns.map((column, i) => (i === 0 ? { ...column, type: 'citext', form: 'text' } : column)),
})
const keyless = tableOf('keyless', { pinned: true, key: [], before: 'row' })
const tables = [wide, pinned, keyless]
const routes: readonly Route[] = tables.map((schema) => ({
  table: schema.table,
  topic: topicName(pipeline, schema.table),
  partitions: schema.pinned ? 1 : 3,
  pinned: schema.pinned,
}))
const partitions: readonly TopicPartition[] = routes.flatMap(({ topic, partitions: count }) =>
  Array.from({ length: count }, (_, partition) => ({ topic, partition })),
)

type Committed = { readonly position: Position; readonly changes: readonly Change[]; readonly truncate?: Effect }
/** A random number below n; the same for the same seed. */
type Dice = (n: number) => number

function dice(seed: number): Dice {
  let state = seed | 0
  return (n) => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 12), 0x297a2d39)
    mixed ^= mixed >>> 15
    return (mixed >>> 0) % n
  }
}

/** A history of commits, and what a database holds after it. */
function history(roll: Dice, commits: number): { readonly log: readonly Committed[]; readonly content: Content } {
  const content: Content = new Map()
  const rows = (schema: TableSchema): Map<string, { row: Value[]; copies: number }> => {
    const found = content.get(tableName(schema.table)) ?? new Map<string, { row: Value[]; copies: number }>()
    content.set(tableName(schema.table), found)
    return found
  }
  const value = (): Value => (roll(5) === 0 ? null : `v${roll(1000)}${'x'.repeat(roll(60))}`)
  const log: Committed[] = []
  for (let n = 1; n <= commits; n++) {
    const position = positionOf(n * 16)
    if (roll(25) === 0) {
      const emptied = tables.filter(() => roll(2) === 0)
      if (emptied.length > 0) {
        for (const schema of emptied) content.delete(tableName(schema.table))
        const effect: Effect = {
          kind: 'truncate',
          tables: emptied.map((schema) => schema.table),
          cascade: false,
          restartCounters: false,
        }
        log.push({ position, changes: [], truncate: effect })
        continue
      }
    }
    const changes: Change[] = []
    const push = (made: Change): void => {
      changes.push(made)
      change(rows(made.schema), made.schema, made.op, made.old, made.row ?? [], false)
    }
    for (let left = 1 + roll(6); left > 0; left--) {
      const schema = tables[roll(4) % 3] ?? wide
      const there = [...rows(schema).values()]
      const one = there[roll(Math.max(1, there.length))]
      const fresh: Row = [String(roll(12)), value(), value(), String(roll(99))]
      if (one === undefined || roll(3) === 0) {
        if (schema.key.length === 0 || !there.some(({ row }) => row[0] === fresh[0]))
          push({ op: Op.insert, schema, row: fresh })
        continue
      }
      const old = [...one.row]
      const key: Row = [old[0], null, null, null]
      if (schema.key.length === 0) {
        if (roll(2) === 0) push({ op: Op.delete, schema, old })
        else push({ op: Op.update, schema, old, row: fresh })
        continue
      }
      const next: Row = [old[0], value(), roll(3) === 0 ? undefined : value(), String(roll(99))]
      switch (roll(4)) {
        case 0:
          push({ op: Op.delete, schema, old: key })
          break
        case 1: {
          const moved: Row = [fresh[0], ...next.slice(1)]
          if (moved[0] === old[0] || there.some(({ row }) => row[0] === moved[0])) break
          changes.push({ op: Op.update, schema, old: key, row: moved })
          rows(schema).delete(JSON.stringify([old[0]]))
          const now = moved.map((cell, i) => (cell === undefined ? old[i] : cell))
          rows(schema).set(JSON.stringify([moved[0]]), { row: now, copies: 1 })
          break
        }
        default:
          push({ op: Op.update, schema, row: next })
      }
    }
    if (changes.length > 0) log.push({ position, changes })
  }
  return { log, content }
}

/** What outlives a stream of changes: like a slot, it knows one reader, and starts no earlier than what was acknowledged. */
type Slot = { reader: number; acked: Position }

/** Sends what comes after a position, with heartbeats between, in batches of random size; overwrites what it lent. */
function scripted(
  log: readonly Committed[],
  roll: Dice,
  slot: Slot,
  started: () => Promise<void>,
  demandHeld: (published: Position) => Promise<void>,
): Pick<Source, 'changes'> {
  return {
    async changes(asked, signal) {
      const me = ++slot.reader
      await started()
      const after = comparePositions(asked, slot.acked) > 0 ? asked : slot.acked
      const events: SourceEvent[] = []
      let batch: (Committed & { firstSeq?: number })[] = []
      const flush = (): void => {
        if (batch.length > 0) events.push(batchOf(batch))
        batch = []
      }
      let last = after
      for (const commit of log) {
        if (comparePositions(commit.position, after) <= 0) continue
        const { position, truncate } = commit
        if (truncate !== undefined) {
          flush()
          events.push({ kind: 'effect', effect: truncate, mark: { position, seq: 0 }, committedAt: 1 })
        } else if (commit.changes.length > 2 && roll(4) === 0) {
          batch.push({ position, changes: commit.changes.slice(0, 2) })
          flush()
          batch.push({ position, changes: commit.changes.slice(2), firstSeq: 8 })
        } else batch.push(commit)
        if (roll(3) === 0) flush()
        if (roll(4) === 0) {
          flush()
          last = positionOf(Number.parseInt(position, 16) + 1)
          events.push({
            kind: 'message',
            position: last,
            committedAt: 1,
            prefix: heartbeatPrefix,
            content: Buffer.of(),
          })
        }
      }
      flush()
      const end = positionOf(Number.parseInt(log.at(-1)?.position ?? '0', 16) + 2)
      events.push({ kind: 'message', position: end, committedAt: 1, prefix: heartbeatPrefix, content: Buffer.of() })
      let waiting = true
      return {
        get waiting() {
          return waiting
        },
        ack(position) {
          if (me === slot.reader && comparePositions(position, slot.acked) > 0) slot.acked = position
        },
        demandHeld,
        async *[Symbol.asyncIterator]() {
          for (const event of events) {
            signal.throwIfAborted()
            waiting = roll(3) > 0 && event !== events.at(-1)
            yield event
            if (event.kind === 'changes') event.images.bytes.fill(0xee)
          }
        },
        async [Symbol.asyncDispose]() {},
      }
    },
  }
}

class Crash extends Error {}

async function captureOnce(
  run: {
    readonly log: MemoryLog
    readonly source: Pick<Source, 'changes'>
    readonly place: Place
    readonly epoch: number
  },
  signal: AbortSignal,
): Promise<void> {
  const publisher = createPublisher({
    pipeline,
    epoch: run.epoch,
    route: (table) => routes.find((route) => tableName(route.table) === tableName(table)),
    partitions,
    ends: await run.log.ends(partitions, signal),
    clock: () => 0,
    limits: { roundBytes: 2000, batchBytes: 600 },
  })
  // Only `changes` is called.
  await capture(run.source as Source, run.log, publisher, run.place, { signal }, new AbortController().signal)
}

async function applyOnce(
  data: MemoryLogData,
  target: ModelTarget,
  mine: readonly TopicPartition[],
  stop: AbortSignal,
): Promise<void> {
  const log = memoryLog({ data })
  const schemas = schemaReader(log, schemasTopic(pipeline))
  const checkpoints = target.claim(mine)
  await demandKnown(log, checkpoints, AbortSignal.timeout(5_000)) // whatever crashed, this is the log we know
  const batcher = createBatcher({
    checkpoints,
    schemas,
    limits: { batchRows: 8, batchBytes: 2000 },
  })
  const lane = target.lane() as unknown as Parameters<typeof applyLane>[1]
  await applyLane(log, lane, batcher, schemas, 5, stop, AbortSignal.timeout(5_000))
}

/** The newest place of a record that counts, by reading all of them. */
async function newestAdmitted(data: MemoryLogData, signal: AbortSignal): Promise<Position> {
  const log = memoryLog({ data, poison: false })
  const prefix = {
    schemaId: 0,
    op: 0,
    positionStart: 0,
    positionEnd: 0,
    seq: 0,
    epoch: 0,
    committedAt: 0,
    rest: 0,
  }
  let newest = origin
  for (const { offset: end, ...at } of await log.ends(partitions, signal)) {
    let seen = { position: origin, seq: -1, epoch: 0 }
    const take = (position: Position, seq: number, epoch: number): void => {
      if (admit(seen, position, seq, epoch) === 'new') seen = { position, seq, epoch }
    }
    for (let offset = 0; offset < end;) {
      const [batch] = await log.fetch([{ ...at, offset }], 0, signal)
      assert.ok(batch)
      const { bytes, bounds } = batch
      for (let i = 0; i < batch.count; i++) {
        if (readPrefix(batch, i, prefix) === 'change') {
          const position = Buffer.from(bytes.subarray(prefix.positionStart, prefix.positionEnd)).toString()
          take(position as Position, prefix.seq, prefix.epoch)
          continue
        }
        const record = decodeControl(bytes.subarray(bounds[4 * i + 2], bounds[4 * i + 3]))
        if (record.kind === 'barrier') take(record.mark.position, record.mark.seq, record.epoch)
        else if (record.epoch > seen.epoch) seen = { ...seen, epoch: record.epoch }
      }
      offset = batch.next
    }
    if (comparePositions(seen.position, newest) > 0) newest = seen.position
  }
  return newest
}

async function scenario(seed: number): Promise<void> {
  const roll = dice(seed)
  const { log: commits, content } = history(roll, 40 + roll(60))
  const data: MemoryLogData = { topics: new Map(), partitions: new Map() }
  const signal = AbortSignal.timeout(5_000)
  const topics = routes.map(({ topic, partitions: count }) => ({
    name: topic,
    partitions: count,
    cleanup: 'delete' as const,
  }))
  await memoryLog({ data }).open(
    [
      ...topics,
      { name: controlTopic(pipeline), partitions: 1, cleanup: 'delete' },
      { name: schemasTopic(pipeline), partitions: 1, cleanup: 'compact' },
    ],
    signal,
  )
  const target = modelTarget()
  target.hurt = async () => {
    await Promise.resolve()
    if (roll(40) === 0) throw new Crash()
  }
  const finished = new AbortController()
  const appliers = [partitions.filter((_, i) => i % 2 === 0), partitions.filter((_, i) => i % 2 === 1)].map(
    async (mine) => {
      while (!finished.signal.aborted) {
        try {
          await applyOnce(data, target, mine, finished.signal)
        } catch (error) {
          if (!(error instanceof Crash)) throw error
        }
      }
    },
  )
  const watch = Promise.all(appliers)
  watch.catch(() => {})

  const slot: Slot = { reader: 0, acked: origin }
  const zombies: (() => void)[] = []
  const pending: Promise<unknown>[] = []
  for (let attempt = 0; ; attempt++) {
    const clean = attempt === 6
    let appends = clean ? Number.MAX_SAFE_INTEGER : 1 + roll(12)
    const asleep = Promise.withResolvers<void>()
    const fate = roll(3)
    let slept = false
    const run = memoryLog({
      data,
      before: async () => {
        if (--appends > 0 || fate === 2) return
        if (fate === 0 || slept) throw new Crash()
        slept = true
        // Falls asleep with an append on its way, and wakes up after its successor has begun.
        const woken = Promise.withResolvers<void>()
        zombies.push(woken.resolve)
        asleep.resolve()
        appends = 1 + roll(4)
        await woken.promise
      },
      after: async () => {
        if (fate === 2 && appends <= 0) throw new Crash()
      },
    })
    const tail = await readTail(run, pipeline, signal)
    const started = async (): Promise<void> => {
      const durable = (await readTail(run, pipeline, signal)).watermark?.position ?? origin
      assert.ok(comparePositions(slot.acked, durable) <= 0, 'nothing is acknowledged past the newest durable watermark')
    }
    const source = scripted(commits, roll, slot, started, async (published) => {
      const newest = await newestAdmitted(data, signal)
      assert.ok(comparePositions(published, newest) >= 0, `the log holds ${newest}, and only ${published} is known`)
      assert.ok(comparePositions(published, commits.at(-1)?.position ?? origin) <= 0)
    })
    const place = placeOf(tail, origin, partitions, [...target.checkpoints.values()])
    const running = captureOnce({ log: run, source, place, epoch: tail.epoch + 1 }, signal)
    const ended = running.then(
      () => true,
      (error: unknown) => {
        // A zombie that finds its topics moved on may see more than its own appends; it never harms.
        if (!(error instanceof Crash)) throw error
        return false
      },
    )
    ended.catch(() => {})
    pending.push(ended)
    const done = await Promise.race([ended, asleep.promise.then(() => false)])
    if (roll(2) === 0) zombies.splice(0).forEach((wake) => wake())
    if (clean && done) break
  }
  zombies.splice(0).forEach((wake) => wake())
  await Promise.all(pending)

  const ends = await memoryLog({ data }).ends(partitions, signal)
  const reached = (): boolean =>
    ends.every(({ topic, partition, offset }) => target.checkpoints.get(`${topic}/${partition}`)?.offset === offset)
  while (!reached()) {
    await Promise.race([watch, new Promise((resolve) => setTimeout(resolve, 2))])
    signal.throwIfAborted()
  }
  finished.abort()
  await watch
  assert.deepEqual(sorted(target.content), sorted(content))
  assert.deepEqual(new Set(target.truncated).size, target.truncated.length, 'each truncate is done once')
}

test('random histories, crashes at any append or commit, and zombies end in the same content', async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer(), (seed) => scenario(seed)),
    { numRuns: Number(process.env['RUNS'] ?? 20), endOnFailure: true },
  )
})
