import { setTimeout as sleep } from 'node:timers/promises'
import { applyLane } from './apply/apply.ts'
import { createBatcher, type Batcher } from './apply/batcher.ts'
import { statusBoard, type Board } from './admin/board.ts'
import { watermarkTrail, type WatermarkTrail } from './admin/lag.ts'
import { schemaReader } from './avro/schema-ids.ts'
import { capture, readTail } from './capture/capture.ts'
import { followWatermarks } from './capture/follow.ts'
import { createPublisher } from './capture/publisher.ts'
import type { ChangeLog } from './change-log/change-log.ts'
import { schemasTopic } from './change-log/topics.ts'
import type { PipelineConfig } from './config/pipeline-config.ts'
import { heartbeatPrefix, type Sink, type Snapshot, type Source } from './connector.ts'
import { holder, leases, type Lease, type Leases } from './coordinate/lease.ts'
import type { StateStore } from './coordinate/state-store.ts'
import { asFailure, Failure } from './errors.ts'
import type { Logger } from './logger.ts'
import { tableName, type Epoch, type Position, type TopicPartition } from './model.ts'
import { partsOf, type Connectors, type Parts } from './parts.ts'
import { partitionsOf, registeredTables, startOver, type Registered } from './registry.ts'
import { complete, setUp } from './setup.ts'
import { copyRound, type CopyParts, type Outcome } from './snapshot/copy.ts'
import { hasEnded, hostAndPid, thisProcess } from './process-identity.ts'
import { runLoop } from './run-loop.ts'
import { taskGroup } from './task-group.ts'
import type { Status } from './status.ts'

/** Milliseconds a lease lives without renewal: so long may the state store be away, and so long does a successor on another machine wait. */
const ttl = 15_000
const heartbeatEvery = 1000
/** Heartbeats between two looks for new tables. */
const newTablesEvery = 60
const sampleEvery = 500
const maxWait = 500
const roundBytes = 4 * 2 ** 20
const batchBytes = 2 ** 20

type Controls = {
  /** Finish what is in hand, then end. */
  readonly stop: AbortSignal
  /** End at once. */
  readonly signal: AbortSignal
  readonly watch: (status: Status) => void
}

/** Runs one pipeline under its lease; a second process of the same pipeline stands by until the lease is free. Resolves `complete` when a `full`
 *  pipeline has its consistent copy, `stopped` after `stop`; rejects with the first failure that no retry can help, when all tasks have ended.
 *  Until it has begun, or stood by, every failure counts: what hinders the start is for the operator to see, not to be waited out. */
export async function runPipeline(
  config: PipelineConfig,
  connectors: Connectors,
  log: Logger,
  { stop, signal, watch }: Controls,
): Promise<Ended> {
  const parts = await partsOf(config, connectors, log)
  await using store = await parts.store(signal)
  const own = leases(store, thisProcess(), { hasEnded })
  let patient = false
  const asked = AbortSignal.any([stop, signal])
  const attempt = async (): Promise<Ended | Failure> => {
    const trail = watermarkTrail()
    const board = statusBoard(config.name, trail)
    let running = false
    const standsBy = (by: string | undefined): void => {
      patient = true
      log.info({ by: by && hostAndPid(by) }, 'another process runs this pipeline: standing by until it ends')
      board.phase = 'standby'
      watch(board.status())
    }
    try {
      if (await isComplete(store, signal)) return (board.phase = 'complete')
      await using lease = await standBy(own, store, asked, signal, standsBy)
      if (await isFinished(parts, store, signal)) return (board.phase = 'complete')
      if (board.phase === 'standby') log.info({}, 'taken over')
      board.phase = 'starting'
      const common = { parts, store, trail, board, leases: own, epoch: lease.epoch }
      return await runUnder(
        common,
        { stop, signal: AbortSignal.any([signal, lease.signal]), watch },
        () => (patient = running = true),
      )
    } catch (error) {
      if (stop.aborted && !signal.aborted && !running) return 'stopped'
      const failure = asFailure(error)
      const again = patient && failure.policy === 'retry'
      board.phase = again ? 'starting' : 'failed'
      board.failure = { failure, retrying: again }
      if (again) throw failure
      return failure
    } finally {
      watch(board.status())
    }
  }
  let result: Ended | Failure
  try {
    result = await runLoop('pipeline', log, asked, attempt)
  } catch (error) {
    if (stop.aborted && !signal.aborted) return 'stopped' // while it waited to try again
    throw error
  }
  if (result instanceof Failure) throw result
  return result
}

/** Written when the copy stands, before the source is told to forget us: who finds it not `released` does only that. */
type Completion = { readonly tables: number; readonly released: boolean }

async function isComplete(store: StateStore, signal: AbortSignal): Promise<boolean> {
  return ((await store.get('complete', signal))?.value as Completion | undefined)?.released === true
}

/** Asked under the lease: the copy is complete, and nothing is kept for it at the source any more. */
async function isFinished(parts: Parts, store: StateStore, signal: AbortSignal): Promise<boolean> {
  const stored = await store.get('complete', signal)
  if (stored === undefined) return false
  const completion = stored.value as Completion
  if (completion.released) return true
  await using source = await parts.source(store, signal)
  await source.release(signal)
  await store.put('complete', { ...completion, released: true }, stored.revision, signal)
  return true
}

/** The wait ends with `asked`; the lease goes on until `signal`, so that what is in hand at a stop is finished under it. */
async function standBy(
  leases: Leases,
  store: StateStore,
  asked: AbortSignal,
  signal: AbortSignal,
  onWait: (by: string | undefined) => void,
): Promise<Lease> {
  for (let told = false; ; told = true) {
    asked.throwIfAborted()
    const lease = await leases.tryAcquire('capture', ttl, signal)
    if (lease !== undefined) return lease
    if (!told) onWait(await holder(store, 'capture', signal))
    await sleep(ttl / 20, undefined, { signal: asked })
  }
}

async function runUnder(common: Common, { stop, signal, watch }: Controls, onBegin: () => void): Promise<Ended> {
  const { parts, store, board, trail } = common
  const { config, log } = parts
  const tasks = taskGroup(log, {
    stop,
    signal,
    onTrouble: (failure) => (board.failure = failure && { failure, retrying: true }),
  })
  // Setting up may be given up at any step, as every step may be repeated.
  const beginning = AbortSignal.any([stop, signal])
  await using changeLog = await parts.changeLog(beginning)
  await using source = await parts.source(store, beginning)
  await using sink = await parts.sink(beginning)
  const { tables, snapshot } = await setUp(parts, { source, sink, store, changeLog }, beginning)
  onBegin()
  board.plan(tables)
  const partitions = tables.flatMap(({ route }) => partitionsOf(route))
  const run: Run = { ...common, changeLog, sink, tables, partitions, batchers: new Map(), halt: tasks.halt }
  tasks.start('capture', (signal) => captureTask(run, signal))
  tasks.start('watermarks', async (signal) => {
    trail.restart()
    const until = AbortSignal.any([signal, tasks.halt])
    await followWatermarks(changeLog, config.name, (record) => trail.add(record), until)
  })
  tasks.start('heartbeat', (signal) => heartbeatTask(run, signal))
  tasks.start('status', (signal) => statusTask(run, watch, signal))
  share(partitions, config.apply.lanes).forEach((mine, i) =>
    tasks.start(`lane ${i}`, (signal) => laneTask(run, i, mine, signal)),
  )
  let copied = false
  let first = snapshot
  tasks.start('copy', async (signal) => {
    if (config.mode !== 'incremental') {
      board.phase = 'copying'
      const given = first
      first = undefined
      const begin = given === undefined ? undefined : { source, snapshot: given }
      copied = (await copyTask(run, begin, signal)) === 'done'
      if (!copied) return
    }
    if (config.mode === 'full') return tasks.end()
    board.observe({ copies: await sink.copies(signal) }) // without them no lag is proved
    board.phase = 'streaming'
  })
  await tasks.ended()
  board.phase = 'stopped'
  if (config.mode !== 'full' || !copied) return 'stopped'
  const completion: Completion = { tables: tables.length, released: false }
  await store.put('complete', completion, 0, signal)
  await isFinished(parts, store, signal)
  return (board.phase = 'complete')
}

type Ended = 'complete' | 'stopped'
/** What lasts as long as the lease. */
type Common = {
  readonly parts: Parts
  readonly store: StateStore
  readonly trail: WatermarkTrail
  readonly board: Board
  readonly leases: Leases
  readonly epoch: Epoch
}
type Run = Common & {
  readonly changeLog: ChangeLog
  readonly sink: Sink
  readonly tables: readonly Registered[]
  readonly partitions: readonly TopicPartition[]
  /** By lane; each knows which checkpoints are its own. */
  readonly batchers: Map<number, Batcher>
  readonly halt: AbortSignal
}

async function captureTask(run: Run, signal: AbortSignal): Promise<void> {
  const { parts, store, changeLog, tables, partitions, halt } = run
  const { name, startAt } = parts.config
  await using source = await parts.source(store, signal)
  const tail = await readTail(changeLog, name, signal)
  const routes = new Map(tables.map(({ schema, route }) => [tableName(schema.table), route]))
  const publisher = createPublisher({
    pipeline: name,
    epoch: Math.max(run.epoch, tail.epoch + 1),
    route: (table) => routes.get(tableName(table)),
    partitions,
    ends: await changeLog.ends(partitions, signal),
    clock: () => performance.now(),
    limits: { roundBytes, batchBytes },
    compress: parts.config.log.type === 'kafka',
  })
  const after = tail.watermark?.position ?? ((startAt ?? '') as Position)
  await capture(source, changeLog, publisher, after, { signal }, halt)
}

/** One lane with the partitions that are its own; claimed anew each time it starts. */
async function laneTask(run: Run, index: number, mine: readonly TopicPartition[], signal: AbortSignal): Promise<void> {
  const { parts, changeLog, batchers, halt } = run
  const { batchRows, batchBytes } = parts.config.apply
  await using sink = await parts.sink(signal)
  await using lane = await sink.lane(signal)
  const schemas = schemaReader(changeLog, schemasTopic(parts.config.name))
  const batcher = createBatcher({
    checkpoints: await lane.claim(mine, 0, signal),
    schemas,
    limits: { batchRows, batchBytes },
  })
  batchers.set(index, batcher)
  try {
    await applyLane(changeLog, lane, batcher, schemas, maxWait, halt, signal)
  } finally {
    batchers.delete(index)
  }
}

async function copyTask(
  run: Run,
  first: { readonly source: Source; readonly snapshot: Snapshot } | undefined,
  signal: AbortSignal,
): Promise<Outcome> {
  const { parts, store, sink, trail, board, leases, halt } = run
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
      while (!trail.stands(partitions, await sink.checkpoints(signal), position)) {
        await sleep(50, undefined, { signal: AbortSignal.any([signal, halt]) })
      }
    },
    complete: async (signal) => await complete(parts, { source, sink, store }, run.tables, signal),
    moved: async () => await refresh(run, signal),
    seen: (table, bytes, rows) => board.copied(table, bytes, rows),
  }
  let outcome = await copyRound(copy, first?.snapshot, { epoch: run.epoch, signal }, halt)
  while (outcome === 'again') outcome = await copyRound(copy, undefined, { epoch: run.epoch, signal }, halt)
  return outcome
}

/** Asks for a watermark about once a second, and for the source's health; about once a minute for tables that came after the start. */
async function heartbeatTask({ parts, store, board, tables, halt }: Run, signal: AbortSignal): Promise<void> {
  await using source = await parts.source(store, signal)
  const known = new Set(tables.map(({ schema }) => tableName(schema.table)))
  for (let beat = 1; !halt.aborted; beat++) {
    await source.emit(heartbeatPrefix, new Uint8Array(), signal)
    board.observe({ health: await source.health(signal) })
    if (beat % newTablesEvery === 0) {
      const found = (await source.tables(parts.filter, signal)).map(({ table }) => tableName(table))
      const missed = found.filter((name) => !known.has(name))
      for (const name of missed) known.add(name)
      if (missed.length > 0)
        parts.log.warn(
          { tables: missed },
          'new tables match tables.include and are not copied: start the pipeline again to take them in',
        )
    }
    await sleep(heartbeatEvery, undefined, { signal: halt })
  }
}

async function refresh({ sink, batchers }: Pick<Run, 'sink' | 'batchers'>, signal: AbortSignal): Promise<void> {
  const checkpoints = await sink.checkpoints(signal)
  for (const batcher of batchers.values()) batcher.resume(checkpoints)
}

/** Looks at both ends of the log, tells the lanes of holds that others moved, and shows what it saw. */
async function statusTask(run: Run, watch: (status: Status) => void, signal: AbortSignal): Promise<void> {
  const { sink, changeLog, board, partitions, batchers, halt } = run
  const { log } = run.parts
  let zombies = 0
  for (let round = 0; !halt.aborted; round++) {
    if (round % 2 === 0) {
      const [checkpoints, ends] = await Promise.all([sink.checkpoints(signal), changeLog.ends(partitions, signal)])
      let dropped = 0
      for (const batcher of batchers.values()) {
        batcher.resume(checkpoints)
        dropped += batcher.dropped.zombies
      }
      if (dropped > zombies)
        log.warn({ records: dropped - zombies }, 'dropped records of an earlier capture that still writes')
      zombies = dropped
      board.observe({ checkpoints, ends })
      if (board.phase !== 'streaming' || round % 20 === 0) board.observe({ copies: await sink.copies(signal) })
    }
    watch(board.status())
    await sleep(sampleEvery, undefined, { signal: halt })
  }
}

/** Partitions to lanes in turn, so that each table's are spread. */
function share(partitions: readonly TopicPartition[], lanes: number): readonly (readonly TopicPartition[])[] {
  const shares = Array.from({ length: Math.min(lanes, partitions.length) }, (): TopicPartition[] => [])
  partitions.forEach((at, i) => shares[i % shares.length]?.push(at))
  return shares
}
