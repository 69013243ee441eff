import { statusBoard } from './admin/board.ts'
import { watermarkTrail } from './admin/lag.ts'
import { changedSince, checkBegun, readBegun, type Begun } from './begun.ts'
import { partitionBudget, routes } from './change-log/topics.ts'
import type { PipelineConfig } from './config/pipeline-config.ts'
import { patternFindings } from './config/table-pattern.ts'
import type { Finding } from './connector.ts'
import { isRenewed } from './coordinate/lease.ts'
import { memoryStore } from './coordinate/state-store.ts'
import { asFailure, codes, Failure } from './errors.ts'
import type { Logger } from './logger.ts'
import type { TableId, TableSchema, TypeParts } from './model.ts'
import { partsOf, type Connectors, type Parts } from './parts.ts'
import { registeredTables } from './registry.ts'
import { readRun } from './run-record.ts'
import { checkTarget } from './setup.ts'
import type { Status } from './status.ts'
import { readVerification } from './verify/watched.ts'

/** The preflight, over everything that can be asked without writing. A server that does not answer is a finding too. */
export async function checkPipeline(
  config: PipelineConfig,
  connectors: Connectors,
  log: Logger,
  signal: AbortSignal,
): Promise<readonly Finding[]> {
  const parts = await partsOf(config, connectors, log)
  const findings: Finding[] = []
  const ask = async (id: string, question: () => Promise<readonly Finding[]>): Promise<void> => {
    try {
      findings.push(...(await question()))
    } catch (error) {
      const { code, facts, message } = asFailure(error)
      findings.push({
        id,
        code,
        level: 'blocker',
        observed: `${code}: ${facts.observed ?? message}`,
        needed: facts.needed ?? 'an answer',
        remedy: facts.next ?? codes[code].next,
      })
    }
  }
  let tables: readonly TableSchema[] = []
  let types: readonly TypeParts[] | undefined
  let identity: string | undefined
  let changing: ReadonlySet<string> | undefined
  const { begun, known } = await whatBegun(parts, signal)
  await ask('source', async () => {
    await using store = begun ? await parts.store(signal) : memoryStore()
    await using source = await parts.source(store, signal)
    identity = await source.identity?.(signal)
    const { startAt } = config
    const found = await source.check(parts.filter, signal, begun ? undefined : startAt)
    const all: { readonly table: TableId; readonly within: readonly TableId[] | undefined }[] = []
    tables = await source.tables((table, within) => {
      all.push({ table, within })
      return parts.filter(table, within)
    }, signal)
    if (begun) changing = changedSince((await source.versions?.(signal)) ?? [], tables)
    const { include, exclude } = config.tables
    types = await source.types?.(tables, signal)
    return [...found, ...patternFindings(include, exclude, all)]
  })
  await ask('target', async () => {
    await using sink = await parts.sink(signal)
    const about = { changing, types }
    // What a start that came to nothing noted at the target counts for nothing.
    const copies = known && begun === undefined ? [] : await sink.copies(signal)
    const found = await checkTarget(sink, tables, config.mode, copies, identity, signal, about)
    if (begun === undefined) return found
    await using store = await parts.store(signal)
    return [...found, ...(await checkBegun(config, begun, { store, sink }, tables, signal))]
  })
  await ask('log', async () => {
    // The embedded log belongs to the process that runs; opening it here could only be in its way.
    if (config.log.type === 'embedded') return []
    await using changeLog = await parts.changeLog(signal)
    const estimated = tables.map((schema) => ({ schema, estimatedRows: Number.MAX_SAFE_INTEGER }))
    const planned = routes(config.name, estimated, config.log.partitions)
    return [
      partitionBudget(planned, config.log.brokers.length, config.log.replication),
      durability(config.log.replication),
      ...((await changeLog.check?.(signal)) ?? []),
    ]
  })
  return findings
}

/** Not `known` where nobody can say: that its store does not answer is told with the target. */
async function whatBegun(
  parts: Parts,
  signal: AbortSignal,
): Promise<{ readonly begun: Begun | undefined; readonly known: boolean }> {
  try {
    await using store = await parts.store(signal)
    return { begun: await readBegun(store, signal), known: true }
  } catch {
    return { begun: undefined, known: false }
  }
}

function durability(replication: number): Finding {
  const few = replication < 3
  return {
    id: 'log.replication',
    level: few ? 'warning' : 'ok',
    observed: `each partition has ${replication === 1 ? 'one copy' : `${replication} copies`}`,
    needed: 'three copies, of which two must have a change before it counts as safe',
    ...(few && { remedy: 'log.replication: 3, unless the log may be lost with a broker’s disk' }),
  }
}

/** What can be known beside the pipeline's process or without one: state store, target and source are read, and nothing about lag is proved. */
export async function readStatus(
  config: PipelineConfig,
  connectors: Connectors,
  log: Logger,
  signal: AbortSignal,
): Promise<Status> {
  const parts = await partsOf(config, connectors, log)
  const board = statusBoard(config.name, watermarkTrail())
  await using store = await parts.store(signal)
  await using sink = await parts.sink(signal)
  const copies = await sink.copies(signal)
  const { applied, error } = await readRun(store, signal)
  board.plan(await registeredTables(store, signal))
  board.recall(applied)
  board.observe({ copies, checkpoints: await sink.checkpoints(signal) })
  const running = await isRenewed(store, 'capture', signal)
  if ((await store.get('complete', signal)) !== undefined) board.phase = 'complete'
  else if (running) board.phase = copies.length > 0 && copies.every(({ live }) => live) ? 'streaming' : 'copying'
  else board.phase = error === undefined ? 'stopped' : 'failed'
  // What ended a former run is no news of this one, and what one that is gone tried again ended it.
  if (error !== undefined && board.phase !== 'complete' && (!running || error.retrying))
    board.failure = { failure: new Failure(error.code, error.facts), retrying: running, at: error.at }
  try {
    await using source = await parts.source(store, signal)
    board.observe({ health: await source.health(signal) })
  } catch (error) {
    const failure = asFailure(error)
    // Nothing is kept for a pipeline that never began or is complete; for any other it is what has gone wrong.
    const begun = (await readBegun(store, signal)) !== undefined
    const nothing = board.phase === 'complete' || (!begun && failure.code === 'SLOT_LOST')
    const worse = board.failure === undefined || failure.policy === 'stop'
    if (!nothing && worse) board.failure = { failure, retrying: running, at: Date.now() }
  }
  return { ...board.status(), verification: await readVerification(store, signal) }
}
