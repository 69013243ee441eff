import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { PipelineConfig } from '../config/pipeline-config.ts'
import type { Source } from '../connector.ts'
import { leases } from '../coordinate/lease.ts'
import { Failure } from '../errors.ts'
import type { Logger } from '../logger.ts'
import { origin, tableName } from '../model.ts'
import { partsOf, type Connectors } from '../parts.ts'
import { hasEnded, thisProcess } from '../process-identity.ts'
import { registeredTables, type Registered } from '../registry.ts'
import { readJournal, resumeJournal, type DifferenceLine, type Line, type Verdict } from './journal.ts'
import { openMender } from './mend.ts'
import { journalPath } from './verify.ts'
import { readWatched, type Watched } from './watched.ts'
import { witnessFor } from './witness.ts'

/** Times in ms. */
export type RepairOptions = {
  /** Tells what would be written, and writes nothing. */
  readonly dryRun: boolean
  /** Until a row that changes all the time is left as it is. */
  readonly settleMs: number
}
/** Of one table: rows told by the report, written now, equal now, and those that still differ or could not be told. Of a dry run `copied`, `removed`: how
 *  many of them differ at this moment, and are to be written as the source has them or to be deleted. */
export type RepairTable = {
  readonly table: string
  told: number
  copied: number
  removed: number
  written: number
  right: number
  different: number
  unknown: number
  /** The first of those that a dry run counts. */
  readonly first: { readonly key: DifferenceLine['key']; readonly action: Action }[]
}
export type Action = 'copy' | 'remove'
export type RepairReport = {
  readonly pipeline: string
  readonly dryRun: boolean
  /** The verification that named the rows: when it began, in ms since 1970, whether it came to its end, and whether it left anything unknown. */
  readonly found: {
    readonly at: number
    readonly whole: boolean
    readonly unknown: boolean
    /** Rows that only a continuous verification named. */
    readonly open?: number
  }
  readonly verdict: Verdict
  readonly tables: readonly RepairTable[]
  /** Where each row that was written is told. */
  readonly audit: string
}
type Controls = { readonly signal: AbortSignal; readonly watch: (table: RepairTable) => void }

const leaseMs = 15_000
const rowsAtOnce = 500

/** Where every row that a repair wrote is told, for ever. */
export function auditPath(config: PipelineConfig): string {
  return join(config.dir, `${config.name}.repairs.jsonl`)
}

/** Makes the target's rows that the last verification found different, or a continuous one holds to be different, what the source has, and no others.
 *  Each is written while its partition stands still, after all that was done to it at the source has been applied, and only if the source's row has
 *  not changed since; so the stream neither undoes it nor is undone. May be repeated and interrupted. Rejects with USAGE where nothing was verified. */
export async function repairPipeline(
  config: PipelineConfig,
  connectors: Connectors,
  log: Logger,
  options: RepairOptions,
  { signal, watch }: Controls,
): Promise<RepairReport> {
  const parts = await partsOf(config, connectors, log)
  await using store = await parts.store(signal)
  await using lease = await leases(store, thisProcess(), { hasEnded }).tryAcquire('verify', leaseMs, signal)
  if (lease === undefined) throw new Failure('VERIFY_RUNNING', { object: config.name })
  const under = AbortSignal.any([signal, lease.signal])
  await using source = await parts.source(store, under)
  await using sink = await parts.sink(under)
  const witness = await witnessFor(source, sink, store, under)
  const audit = auditPath(config)
  await using mender = openMender(source, sink, witness, options, audit)
  const byName = await currentTables(source, await registeredTables(store, under), under)
  const tables = new Map<string, RepairTable>()
  let group: DifferenceLine[] = []
  const flush = async (): Promise<void> => {
    const [first] = group
    if (first === undefined) return
    const registered = byName.get(first.table)
    const tally = tallyOf(tables, first.table)
    if (registered === undefined) tally.unknown += group.length
    else if (options.dryRun) await mender.look(registered, group, tally, under)
    else await mender.mend(registered, group, tally, under)
    watch(tally)
    group = []
  }
  const take = async (line: DifferenceLine): Promise<void> => {
    const tally = tallyOf(tables, line.table)
    tally.told++
    if (group.length === rowsAtOnce || group[0]?.table !== line.table) await flush()
    group.push(line)
  }
  const watched = await readWatched(store, under)
  const open = openLines(watched)
  // More than it keeps: they are named nowhere.
  const unnamed = watched !== undefined && watched.open.more.ofWalk + watched.open.more.since > 0
  const found = {
    at: watched?.at ?? 0,
    whole: (watched?.walks ?? 0) > 0,
    unknown: unnamed || watched?.open.rows.some(({ verdict }) => verdict === 'unknown') === true,
    open: open.size,
  }
  let isUnfinished = false
  for await (const line of await journalOf(config, watched !== undefined)) {
    isUnfinished = line.kind !== 'end'
    if (line.kind === 'begin') Object.assign(found, { at: line.at, whole: false, unknown: unnamed })
    if (line.kind === 'end') found.whole = true
    if (leavesOpen(line)) found.unknown = true
    if (line.kind !== 'difference') continue
    open.delete(rowName(line))
    await take(line)
  }
  found.open = open.size
  for (const line of open.values()) await take(line)
  await flush()
  await mender.finish(under)
  if (isUnfinished && tables.size > 0 && !options.dryRun) await endJournal(config)
  const all = [...tables.values()]
  const differs = all.some(({ different }) => different > 0)
  const unknown = all.some(({ unknown }) => unknown > 0)
  const left = unknown || found.unknown || !found.whole ? 'unknown' : 'equal'
  const due = all.some(({ copied, removed }) => copied + removed > 0)
  const verdict = differs || due ? 'different' : left
  return { pipeline: config.name, dryRun: options.dryRun, verdict, tables: all, found, audit }
}

/** What an interrupted verification has found no longer holds: the next one begins anew. */
async function endJournal(config: PipelineConfig): Promise<void> {
  await using journal = await resumeJournal(journalPath(config))
  const why = 'it was interrupted, and rows that it had found were repaired'
  await journal.append([{ kind: 'end', at: Date.now(), verdict: 'unknown', why, throttledMs: 0 }])
}

/** What was not verified may differ, and is not repaired. */
function leavesOpen(line: Line): boolean {
  if (line.kind === 'begin') return line.tables.some(({ why }) => why !== undefined)
  return line.kind === 'unsettled' || ((line.kind === 'chunk' || line.kind === 'end') && line.verdict === 'unknown')
}

/** As the source has them now; without those that are gone. */
async function currentTables(
  source: Source,
  registered: readonly Registered[],
  signal: AbortSignal,
): Promise<ReadonlyMap<string, Registered>> {
  const routes = new Map(registered.map((table) => [tableName(table.schema.table), table]))
  const now = await source.tables((table) => routes.has(tableName(table)), signal)
  return new Map(
    now.flatMap((schema) => {
      const table = routes.get(tableName(schema.table))
      return table === undefined ? [] : [[tableName(schema.table), { ...table, schema }] as const]
    }),
  )
}

function tallyOf(tables: Map<string, RepairTable>, table: string): RepairTable {
  const known = tables.get(table)
  if (known !== undefined) return known
  const counts = { told: 0, copied: 0, removed: 0, written: 0, right: 0, different: 0, unknown: 0 }
  const made: RepairTable = { table, ...counts, first: [] }
  tables.set(table, made)
  return made
}

const rowName = ({ table, key }: Pick<DifferenceLine, 'table' | 'key'>): string => JSON.stringify([table, ...key])

/** The rows that a continuous verification holds to be different. */
function openLines(watched: Watched | undefined): Map<string, DifferenceLine> {
  const rows = watched?.open.rows ?? []
  return new Map(
    rows.flatMap(({ table, key, verdict, what, position = origin, firstSeen, rechecks }) => {
      if (verdict !== 'different' || what === undefined) return []
      return [
        [rowName({ table, key }), { kind: 'difference', table, what, key, columns: [], position, firstSeen, rechecks }],
      ]
    }),
  )
}

/** What the last verification wrote down, in its order; nothing where there was none and there need not be. */
async function journalOf(config: PipelineConfig, mayLack: boolean): Promise<AsyncIterable<Line>> {
  const path = journalPath(config)
  const there = await stat(path).catch(() => undefined)
  if (there === undefined && mayLack) return (async function* () {})()
  if (there === undefined)
    throw new Failure('USAGE', { observed: 'nothing was verified yet', next: 'crossfade verify' })
  return (async function* () {
    for await (const line of readJournal(path)) {
      if (line.kind === 'begin' && line.pipeline !== config.name)
        throw new Failure('USAGE', { object: path, observed: `it is of pipeline ${line.pipeline}` })
      yield line
    }
  })()
}
