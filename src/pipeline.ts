import { setTimeout as sleep } from 'node:timers/promises'
import { statusBoard, type Board } from './admin/board.ts'
import { watermarkTrail } from './admin/lag.ts'
import { schemaReader } from './avro/schema-ids.ts'
import { schemasTopic } from './change-log/topics.ts'
import type { PipelineConfig } from './config/pipeline-config.ts'
import { holder, leases, type Lease, type Leases } from './coordinate/lease.ts'
import type { StateStore } from './coordinate/state-store.ts'
import { asFailure, Failure } from './errors.ts'
import { failpoint } from './failpoint.ts'
import type { Logger } from './logger.ts'
import { partsOf, type Connectors, type Parts } from './parts.ts'
import { hasEnded, hostAndPid, thisProcess } from './process-identity.ts'
import { partitionsOf, registeredTables } from './registry.ts'
import { runLoop } from './run-loop.ts'
import { readRun, runRecorder } from './run-record.ts'
import { setUp } from './setup.ts'
import type { Status } from './status.ts'
import { taskGroup } from './task-group.ts'
import {
  captureTask,
  copyTask,
  heartbeatTask,
  keepRecord,
  laneTask,
  newTablesTask,
  share,
  statusTask,
  verifyTask,
  watermarkTask,
  type Common,
  type Run,
} from './tasks.ts'

/** Milliseconds a lease lives without renewal: so long may the state store be away, and so long does a successor on another machine wait. */
const ttl = 15_000

/** Milliseconds that the last word of a run may take: it is told in time also where the state store is what went away. */
const farewellMs = 3_000

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
    const failed = (error: unknown): Failure | 'stopped' => {
      if (stop.aborted && !signal.aborted && !running) return 'stopped'
      const failure = asFailure(error)
      const retrying = patient && failure.policy === 'retry'
      board.phase = retrying ? 'starting' : 'failed'
      board.failure = { failure, retrying, at: Date.now() }
      return failure
    }
    const work = async (): Promise<Ended | Failure> => {
      if (await isComplete(store, signal)) return await complete(parts, store, board, signal)
      await using lease = await standBy(own, store, asked, signal, standsBy)
      failpoint('pipeline.after-lease')
      if (await isFinished(parts, store, signal)) return await complete(parts, store, board, signal)
      if (board.phase === 'standby') log.info({}, 'taken over')
      board.phase = 'starting'
      const under = AbortSignal.any([signal, lease.signal])
      board.recall((await readRun(store, under)).applied)
      const recorder = await runRecorder(store, log, under)
      const common = { parts, store, trail, board, recorder, leases: own, ttl, epoch: lease.epoch }
      const outcome = await runUnder(common, { stop, signal: under, watch }, () => (patient = running = true)).catch(
        failed,
      )
      // What was tried again when it was stopped did not end it.
      if (!(outcome instanceof Failure)) board.failure = undefined
      // Whoever asks later how it ended: while nobody else can have begun.
      await keepRecord(common, AbortSignal.any([under, AbortSignal.timeout(farewellMs)]))
      return outcome
    }
    try {
      const outcome = await work().catch(failed)
      if (outcome instanceof Failure && board.failure?.retrying === true) throw outcome
      return outcome
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
  failpoint('full.between-release-and-record')
  await store.put('complete', { ...completion, released: true }, stored.revision, signal)
  return true
}

/** Shows the copy that stands: its tables and rows. */
async function complete(parts: Parts, store: StateStore, board: Board, signal: AbortSignal): Promise<'complete'> {
  await using sink = await parts.sink(signal)
  board.plan(await registeredTables(store, signal))
  board.observe({ copies: await sink.copies(signal) })
  return (board.phase = 'complete')
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
  const { parts, store, board, epoch } = common
  const { config, log } = parts
  const tasks = taskGroup(log, {
    stop,
    signal,
    onTrouble: (failure) => (board.failure = failure && { failure, retrying: true, at: Date.now() }),
  })
  // Setting up may be given up at any step, as every step may be repeated.
  const beginning = AbortSignal.any([stop, signal])
  await using changeLog = await parts.changeLog(beginning)
  await using source = await parts.source(store, beginning)
  await using sink = await parts.sink(beginning)
  const { tables, snapshot, start } = await setUp(
    parts,
    { source, sink, store, changeLog },
    { epoch, signal: beginning },
  )
  onBegin()
  board.plan(tables)
  const partitions = tables.flatMap(({ route }) => partitionsOf(route))
  const run: Run = {
    ...common,
    changeLog,
    schemas: schemaReader(changeLog, schemasTopic(config.name)),
    sink,
    tables,
    partitions,
    start,
    truncated: new Map(),
    batchers: new Map(),
    claimed: new Map(),
    ended: { applied: 0 },
    halt: tasks.halt,
  }
  tasks.start('capture', (signal) => captureTask(run, signal))
  tasks.start('watermarks', (signal) => watermarkTask(run, signal))
  tasks.start('heartbeat', (signal) => heartbeatTask(run, signal))
  tasks.start('new tables', (signal) => newTablesTask(run, signal))
  tasks.start('status', (signal) => statusTask(run, watch, signal))
  share(partitions, config.apply.lanes).forEach((mine, i) =>
    tasks.start(`lane ${i}`, (signal, progressed) => laneTask(run, i, mine, signal, progressed)),
  )
  const stopping = (): void => {
    log.info({}, 'stopping: what is in hand is finished first')
    board.phase = 'stopping'
    watch(board.status())
  }
  stop.addEventListener('abort', stopping, { once: true })
  using _ = { [Symbol.dispose]: () => stop.removeEventListener('abort', stopping) }
  if (stop.aborted) stopping()
  let copied = false
  let first = snapshot
  tasks.start('copy', async (signal) => {
    if (config.mode !== 'incremental') {
      if (!stop.aborted) board.phase = 'copying'
      const given = first
      first = undefined
      const begin = given === undefined ? undefined : { source, snapshot: given }
      copied = (await copyTask(run, begin, signal)) === 'done'
      if (!copied) return
    }
    if (config.mode === 'full') return tasks.end()
    board.observe({ copies: await sink.copies(signal) }) // without them no lag is proved
    if (!stop.aborted) board.phase = 'streaming'
    if (config.verify.schedule === 'continuous') tasks.start('verification', (signal) => verifyTask(run, signal))
  })
  await tasks.ended()
  board.phase = 'stopped'
  if (config.mode !== 'full' || !copied) return 'stopped'
  const completion: Completion = { tables: tables.length, released: false }
  failpoint('full.before-complete')
  await store.put('complete', completion, 0, signal)
  failpoint('full.between-complete-and-release')
  await isFinished(parts, store, signal)
  return await complete(parts, store, board, signal)
}

type Ended = 'complete' | 'stopped'
