import { setTimeout as sleep } from 'node:timers/promises'
import type { Board } from './admin/board.ts'
import type { WatermarkTrail } from './admin/lag.ts'
import { applyLane } from './apply/apply.ts'
import { createBatcher, type Batcher } from './apply/batcher.ts'
import { demandKnown } from './apply/known-log.ts'
import type { SchemaReader } from './avro/schema-ids.ts'
import { capture, demandEnds, readTail } from './capture/capture.ts'
import { followWatermarks } from './capture/follow.ts'
import { placeOf } from './capture/published.ts'
import { createPublisher } from './capture/publisher.ts'
import type { ChangeLog } from './change-log/change-log.ts'
import type { Sink, Snapshot, Source } from './connector.ts'
import type { Leases } from './coordinate/lease.ts'
import type { StateStore } from './coordinate/state-store.ts'
import { asFailure, Failure } from './errors.ts'
import { failpoint } from './failpoint.ts'
import {
  comparePositions,
  origin,
  tableName,
  type Epoch,
  type Position,
  type TableId,
  type TopicPartition,
  heartbeatPrefix,
} from './model.ts'
import type { Parts } from './parts.ts'
import { partitionsOf, registeredTables, startOver, type Registered } from './registry.ts'
import { complete } from './setup.ts'
import { chunkLeases, copyRound, type CopyParts, type Outcome } from './snapshot/copy.ts'
import type { RunRecorder } from './run-record.ts'
import type { Status } from './status.ts'
import { verifyContinuously } from './verify/continuous.ts'

// Times in ms.
const heartbeatEvery = 1000
const newTablesEvery = 60_000
const sampleEvery = 500
/** Samples between two looks whether there is news for whoever asks from outside; a verification waits for it. */
const recordEvery = 2
const maxWait = 500
const roundBytes = 4 * 2 ** 20
const batchBytes = 2 ** 20

/** What lasts as long as the lease. */
export type Common = {
  readonly parts: Parts
  readonly store: StateStore
  readonly trail: WatermarkTrail
  readonly board: Board
  readonly recorder: RunRecorder
  readonly leases: Leases
  /** Milliseconds a lease lives without renewal. */
  readonly ttl: number
  readonly epoch: Epoch
}
/** What lasts from one set-up to its end. */
export type Run = Common & {
  readonly changeLog: ChangeLog
  /** One for all lanes: with thousands of tables it is what takes most time and memory at a start. */
  readonly schemas: SchemaReader
  readonly sink: Sink
  readonly tables: readonly Registered[]
  readonly partitions: readonly TopicPartition[]
  /** Where changes begin as long as no watermark says more. */
  readonly start: Position
  /** By table: the place of its last truncate in the log. */
  readonly truncated: Map<string, Position>
  /** By lane; each knows which checkpoints are its own. */
  readonly batchers: Map<number, Batcher>
  /** By lane: the offsets of its checkpoints at its last claim, added up. */
  readonly claimed: Map<number, number>
  /** Changes applied by lanes that have ended. */
  readonly ended: { applied: number }
  readonly halt: AbortSignal
}

/** From the source to the log, under a higher epoch than anyone captured under before. */
export async function captureTask(run: Run, signal: AbortSignal): Promise<void> {
  const { parts, store, changeLog, tables, partitions, halt } = run
  const { name } = parts.config
  await using source = await parts.source(store, signal)
  const tail = await readTail(changeLog, name, signal)
  const applied = await run.sink.checkpoints(signal)
  const ends = await changeLog.ends(partitions, signal)
  demandEnds(ends, [...tail.ends, ...applied])
  const routes = new Map(tables.map(({ schema, route }) => [tableName(schema.table), route]))
  const publisher = createPublisher({
    pipeline: name,
    epoch: Math.max(run.epoch, tail.epoch + 1),
    route: (table) => routes.get(tableName(table)),
    partitions,
    ends,
    clock: () => performance.now(),
    limits: { roundBytes, batchBytes, messageBytes: parts.config.log.maxMessageBytes },
    compress: parts.config.log.type === 'kafka',
    onTruncate: (emptied, position) => emptied.forEach((table) => run.truncated.set(tableName(table), position)),
  })
  const place = placeOf(tail, run.start, partitions, applied)
  await capture(source, changeLog, publisher, place, { signal }, halt)
}

/** Hears what the control topic proves. */
export async function watermarkTask(
  { parts, changeLog, trail, partitions, halt }: Run,
  signal: AbortSignal,
): Promise<void> {
  trail.restart(partitions)
  const until = AbortSignal.any([signal, halt])
  await followWatermarks(changeLog, parts.config.name, (record) => trail.add(record), until)
}

/** One lane with the partitions that are its own; claimed anew each time it starts. Where they have moved since the claim before, it got somewhere,
 *  however soon its connection was cut. */
export async function laneTask(
  run: Run,
  index: number,
  mine: readonly TopicPartition[],
  signal: AbortSignal,
  progressed: () => void,
): Promise<void> {
  const { parts, changeLog, schemas, batchers, halt } = run
  const { batchRows, batchBytes } = parts.config.apply
  await using sink = await parts.sink(signal)
  await using lane = await sink.lane(signal)
  const checkpoints = await lane.claim(mine, 0, signal)
  failpoint('apply.after-claim')
  const offsets = checkpoints.reduce((sum, { offset }) => sum + offset, 0)
  if (offsets > (run.claimed.get(index) ?? offsets)) progressed()
  run.claimed.set(index, offsets)
  await demandKnown(changeLog, checkpoints, signal)
  const batcher = createBatcher({
    checkpoints,
    schemas,
    limits: { batchRows, batchBytes },
  })
  batchers.set(index, batcher)
  try {
    await applyLane(changeLog, lane, batcher, schemas, maxWait, halt, signal)
  } finally {
    batchers.delete(index)
    run.ended.applied += batcher.applied
  }
}

/** Rounds of copying until nothing is missing. `first`: the source that keeps the snapshot of the beginning; later rounds open one of their own. */
export async function copyTask(
  run: Run,
  first: { readonly source: Source; readonly snapshot: Snapshot } | undefined,
  signal: AbortSignal,
): Promise<Outcome> {
  const { parts, store, sink, trail, board, leases, ttl, halt } = run
  const own = first === undefined ? await parts.source(store, signal) : undefined
  const source = own ?? first?.source
  if (source === undefined) throw new Failure('BUG', { observed: 'a copy without a source' })
  await using _ = { [Symbol.asyncDispose]: async () => await own?.[Symbol.asyncDispose]() }
  const tables = async (): Promise<readonly Registered[]> => {
    const now = await registeredTables(store, signal)
    board.plan(now)
    return now
  }
  const copy: CopyParts = {
    source,
    sink,
    leases,
    tables: async () =>
      (await tables()).map(({ schema, route, plan }) => ({ schema, partitions: partitionsOf(route), plan })),
    startOver: async ({ table }) => {
      const stored = run.tables.find(({ schema }) => tableName(schema.table) === tableName(table))
      if (stored !== undefined) await startOver(store, stored.schema, signal)
    },
    parallel: parts.config.snapshot.parallel,
    ttl,
    keepHeld: parts.config.mode === 'full',
    stands: async (partitions, position, signal) => {
      await source.emit(heartbeatPrefix, new Uint8Array(), signal) // for a watermark soon
      for (;;) {
        const began = performance.now()
        if (trail.stands(partitions, await sink.checkpoints(signal), position)) return
        // Asking about thousands of partitions takes a fifth of the time at most.
        const pause = Math.max(50, 4 * (performance.now() - began))
        await sleep(pause, undefined, { signal: AbortSignal.any([signal, halt]) })
      }
    },
    emptied: async ({ table }, after, signal) => {
      const { position } = await source.health(signal)
      await source.emit(heartbeatPrefix, new Uint8Array(), signal)
      // Whatever was committed until now is in the log then, and known here.
      while (comparePositions(trail.latest?.position ?? origin, position) < 0) {
        await sleep(50, undefined, { signal: AbortSignal.any([signal, halt]) })
      }
      const at = run.truncated.get(tableName(table))
      return at !== undefined && comparePositions(at, after) > 0 ? at : undefined
    },
    complete: async (signal) => await complete(parts, { source, sink, store }, run.tables, signal),
    moved: async () => await refresh(run, signal),
    seen: (table, bytes, rows) => board.copied(table, bytes, rows),
  }
  // Chunks of a former driver's are loaded by nobody any more: its epoch is over, and their snapshots.
  await store.remove(`lease/${chunkLeases}`, signal)
  let outcome = await copyRound(copy, first?.snapshot, { epoch: run.epoch, signal }, halt)
  while (outcome === 'again') outcome = await copyRound(copy, undefined, { epoch: run.epoch, signal }, halt)
  if (outcome === 'done') await store.remove(`lease/${chunkLeases}`, signal)
  return outcome
}

/** Asks for a watermark about once a second, and for the source's health. */
export async function heartbeatTask({ parts, store, board, halt }: Run, signal: AbortSignal): Promise<void> {
  await using source = await parts.source(store, signal)
  while (!halt.aborted) {
    await source.emit(heartbeatPrefix, new Uint8Array(), signal)
    board.observe({ health: await source.health(signal) })
    await sleep(heartbeatEvery, undefined, { signal: halt })
  }
}

/** Asks about once a minute for tables that came after the start. Whoever has locked one holds nobody up but this. */
export async function newTablesTask({ parts, store, tables, halt }: Run, signal: AbortSignal): Promise<void> {
  const known = new Set(tables.map(({ schema }) => tableName(schema.table)))
  for (;;) {
    await sleep(newTablesEvery, undefined, { signal: halt })
    await using source = await parts.source(store, signal)
    const within = new Map<string, readonly TableId[]>()
    const found = await source.tables((table, parents) => {
      within.set(tableName(table), parents ?? [])
      return parts.filter(table, parents)
    }, signal)
    const missed = found.map(({ table }) => tableName(table)).filter((name) => !known.has(name))
    demandWhole(missed, known, within)
    for (const name of missed) known.add(name)
    if (missed.length > 0)
      parts.log.warn(
        { tables: missed },
        'new tables match tables.include and are not copied: start the pipeline again to take them in',
      )
  }
}

/** A new part of a table whose other parts are captured: rows that move there are taken from the target, and come back only with its copy (H26). */
function demandWhole(
  missed: readonly string[],
  known: ReadonlySet<string>,
  within: ReadonlyMap<string, readonly TableId[]>,
): void {
  const roots = new Set([...known].flatMap((name) => within.get(name)?.map(tableName) ?? []))
  const part = missed.find((name) => within.get(name)?.some((parent) => roots.has(tableName(parent))))
  if (part === undefined) return
  throw new Failure('TABLE_CHANGED', {
    object: part,
    observed: `it became a part of ${within.get(part)?.map(tableName).join(', ')}, of which other parts are captured`,
    needed: 'every part that tables.include names',
    effect: 'rows that moved there are missing at the target until it is taken in',
    next: 'Start again: it is taken in, with a copy of its own; or name it under tables.exclude',
  })
}

async function refresh({ sink, batchers }: Pick<Run, 'sink' | 'batchers'>, signal: AbortSignal): Promise<void> {
  const checkpoints = await sink.checkpoints(signal)
  for (const batcher of batchers.values()) batcher.resume(checkpoints)
}

const verifyAgainMs = 60_000

/** Verifies for as long as it runs. Whatever goes wrong with it is told by the status of the verification, and ends nothing. */
export async function verifyTask({ parts, halt }: Run, signal: AbortSignal): Promise<void> {
  const until = AbortSignal.any([signal, halt])
  for (;;) {
    try {
      await verifyContinuously(parts, parts.config.verify, { signal: until, inside: true, watch: () => {} })
    } catch (error) {
      until.throwIfAborted()
      const { code, facts, message } = asFailure(error)
      parts.log.warn({ code, ...facts, cause: undefined }, `the verification does not go on for now: ${message}`)
    }
    await sleep(verifyAgainMs, undefined, { signal: until })
  }
}

/** Looks at both ends of the log, tells the lanes of holds that others moved, and shows what it saw. */
export async function statusTask(run: Run, watch: (status: Status) => void, signal: AbortSignal): Promise<void> {
  const { sink, changeLog, board, partitions, batchers, halt } = run
  const { log } = run.parts
  let zombies = 0
  for (let round = 0; !halt.aborted; round++) {
    if (round % 2 === 0) {
      const [checkpoints, ends] = await Promise.all([sink.checkpoints(signal), changeLog.ends(partitions, signal)])
      let dropped = 0
      let applied = run.ended.applied
      for (const batcher of batchers.values()) {
        batcher.resume(checkpoints)
        applied += batcher.applied
        dropped += batcher.dropped.zombies
      }
      if (dropped > zombies)
        log.warn({ records: dropped - zombies }, 'dropped records of an earlier capture that still writes')
      zombies = dropped
      board.observe({ checkpoints, ends, applied })
      if (board.phase !== 'streaming' || round % 20 === 0) board.observe({ copies: await sink.copies(signal) })
    }
    watch(board.status())
    if (round % recordEvery === 0) await keepRecord(run, signal)
    await sleep(sampleEvery, undefined, { signal: halt })
  }
}

/** For whoever asks from outside: what was proved, and what is tried again or has ended the run. */
export async function keepRecord(
  { board, recorder }: Pick<Common, 'board' | 'recorder'>,
  signal: AbortSignal,
): Promise<void> {
  const { applied, failure } = board
  const error = failure && {
    code: failure.failure.code,
    facts: failure.failure.facts,
    retrying: failure.retrying,
    at: failure.at,
  }
  await recorder.keep({ applied, error }, signal)
}

/** Partitions to lanes in turn, so that each table's are spread. */
export function share(partitions: readonly TopicPartition[], lanes: number): readonly (readonly TopicPartition[])[] {
  const shares = Array.from({ length: Math.min(lanes, partitions.length) }, (): TopicPartition[] => [])
  partitions.forEach((at, i) => shares[i % shares.length]?.push(at))
  return shares
}
