import { appendFile, stat } from 'node:fs/promises'
import { userInfo } from 'node:os'
import { join } from 'node:path'
import { compileEncoder } from '../avro/encoder.ts'
import type { PipelineConfig } from '../config/pipeline-config.ts'
import type { Lane, Sink, Source } from '../connector.ts'
import { leases } from '../coordinate/lease.ts'
import { Failure } from '../errors.ts'
import { hashRing } from '../hash-ring.ts'
import type { Logger } from '../logger.ts'
import { partitionName, tableName, type TableSchema, type TopicPartition } from '../model.ts'
import { Output } from '../output.ts'
import { partsOf, type Connectors } from '../parts.ts'
import { hasEnded, thisProcess } from '../process-identity.ts'
import { registeredTables, type Registered } from '../registry.ts'
import { rowsOf, type Mending } from '../rows.ts'
import { cellsOf, type Ends, type Suspect } from './compare.ts'
import { readJournal, type DifferenceLine, type Line, type Verdict } from './journal.ts'
import { isSame, readRows, settle, stillness, type Found, type Witness } from './settle.ts'
import { journalPath } from './verify.ts'
import { witnessOf } from './witness.ts'

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
type Action = 'copy' | 'remove'
export type RepairReport = {
  readonly pipeline: string
  readonly dryRun: boolean
  /** The verification that named the rows: when it began, in ms since 1970, whether it came to its end, and whether it left anything unknown. */
  readonly found: { readonly at: number; readonly whole: boolean; readonly unknown: boolean }
  readonly verdict: Verdict
  readonly tables: readonly RepairTable[]
  /** Where each row that was written is told. */
  readonly audit: string
}
type Controls = { readonly signal: AbortSignal; readonly watch: (table: RepairTable) => void }

const leaseMs = 15_000
const rowsAtOnce = 100
const firstOfTable = 5
/** As long may the partition's lane be kept waiting for the source to answer. */
const heldMs = 3_000

/** Where every row that a repair wrote is told, for ever. */
export function auditPath(config: PipelineConfig): string {
  return join(config.dir, `${config.name}.repairs.jsonl`)
}

/** Makes the target's rows that the last verification found different what the source has, and no others. Each is written while its partition stands still,
 *  after all that was done to it at the source has been applied, and only if the source's row has not changed since; so the stream neither undoes it
 *  nor is undone. May be repeated and interrupted. Rejects with USAGE where nothing was verified. */
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
  const still = (await store.get('complete', under)) !== undefined
  const witness = still ? stillness(async (signal) => await source.visible(signal)) : witnessOf(source, sink, store)
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
  const found = { at: 0, whole: false, unknown: false }
  for await (const line of await journalOf(config)) {
    if (line.kind === 'begin') found.at = line.at
    if (line.kind === 'end') found.whole = true
    if (leavesOpen(line)) found.unknown = true
    if (line.kind !== 'difference') continue
    const tally = tallyOf(tables, line.table)
    tally.told++
    if (group.length === rowsAtOnce || group[0]?.table !== line.table) await flush()
    group.push(line)
  }
  await flush()
  const all = [...tables.values()]
  const differs = all.some(({ different }) => different > 0)
  const unknown = all.some(({ unknown }) => unknown > 0)
  const left = unknown || found.unknown || !found.whole ? 'unknown' : 'equal'
  const due = all.some(({ copied, removed }) => copied + removed > 0)
  const verdict = differs || due ? 'different' : left
  return { pipeline: config.name, dryRun: options.dryRun, verdict, tables: all, found, audit }
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

/** What the last verification wrote down, in its order. */
async function journalOf(config: PipelineConfig): Promise<AsyncIterable<Line>> {
  const path = journalPath(config)
  const there = await stat(path).catch(() => undefined)
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

/** A row of the report, and the source's as it was seen. */
type Sighted = { readonly suspect: Suspect; readonly source: Found }

interface Mender extends AsyncDisposable {
  /** Counts what each of these rows of a table needs at this moment; writes nothing. */
  look(table: Registered, lines: readonly DifferenceLine[], tally: RepairTable, signal: AbortSignal): Promise<void>
  /** Of one table. Counts what came of each of these in `tally`. */
  mend(table: Registered, lines: readonly DifferenceLine[], tally: RepairTable, signal: AbortSignal): Promise<void>
}

function openMender(source: Source, sink: Sink, witness: Witness, { settleMs }: RepairOptions, audit: string): Mender {
  let ends: Ends | undefined
  let lane: Lane | undefined
  const open = async (signal: AbortSignal): Promise<Ends> =>
    (ends ??= { source: await source.reader('now', signal), target: await sink.reader(signal) })
  /** What of these may be written now: the source's row is still the one that was seen before everything up to it was applied, so no change of it
   *  waits behind the checkpoint, and the target's is another. `rest`: those whose turn it is not. */
  const due = async (
    ends: Ends,
    schema: TableSchema,
    some: readonly Sighted[],
    signal: AbortSignal,
  ): Promise<{ readonly due: readonly Sighted[]; readonly rest: readonly Sighted[] }> => {
    const held = AbortSignal.any([signal, AbortSignal.timeout(heldMs)])
    try {
      await source.visible(held)
      const suspects = some.map(({ suspect }) => suspect)
      const now = await readRows(ends.source, schema, suspects, held)
      const there = await readRows(ends.target, schema, suspects, held)
      const still = (i: number): boolean => some[i]?.source.versions === now[i]?.versions
      return {
        due: some.filter((row, i) => still(i) && !isSame(row.source, there[i] ?? row.source)),
        rest: some.filter((_, i) => !still(i)),
      }
    } catch (error) {
      if (signal.aborted || !held.aborted) throw error
      return { due: [], rest: some }
    }
  }
  return {
    async look({ schema }, lines, tally, signal) {
      const ends = await open(signal)
      const suspects = lines.map(({ key }): Suspect => ({ key }))
      const there = await readRows(ends.target, schema, suspects, signal)
      const here = await readRows(ends.source, schema, suspects, signal)
      for (const [i, row] of here.entries()) {
        const action: Action = row.copies === 0 ? 'remove' : 'copy'
        if (isSame(row, there[i] ?? row)) tally.right++
        else {
          if (action === 'copy') tally.copied++
          else tally.removed++
          if (tally.first.length < firstOfTable) tally.first.push({ key: suspects[i]?.key ?? [], action })
        }
      }
    },
    async mend({ schema, route }, lines, tally, signal) {
      const ends = await open(signal)
      const writing = (lane ??= await sink.lane(signal))
      const until = AbortSignal.any([signal, AbortSignal.timeout(settleMs)])
      const place = placing(schema, route)
      const suspects = lines.map(({ key }): Suspect => ({ key }))
      let left = suspects
      try {
        while (left.length > 0) {
          const seen = await readRows(ends.source, schema, left, until)
          await witness.applied(await witness.visible(until), until)
          const sighted = left.flatMap((suspect, i): Sighted[] => (seen[i] ? [{ suspect, source: seen[i] }] : []))
          const byPlace = Map.groupBy(sighted, ({ suspect }) => partitionName(place(suspect.key)))
          left = []
          for (const some of byPlace.values()) {
            const [first] = some
            if (first === undefined) continue
            let found: Awaited<ReturnType<typeof due>> = { due: [], rest: [] }
            const read = async (): Promise<Mending> => {
              found = await due(ends, schema, some, until)
              await record(audit, schema, found.due)
              return mendingOf(schema, found.due)
            }
            await writing.repair(place(first.suspect.key), schema, read, signal)
            tally.written += found.due.length
            left = [...left, ...found.rest.map(({ suspect }) => suspect)]
          }
        }
      } catch (error) {
        if (signal.aborted || !until.aborted) throw error
      }
      for (const { kind } of await settle(ends, schema, suspects, witness, settleMs, signal)) {
        if (kind === 'same') tally.right++
        else tally[kind]++
      }
    },
    async [Symbol.asyncDispose]() {
      const all = [ends?.source, ends?.target, lane]
      await Promise.allSettled(all.map(async (each) => await each?.[Symbol.asyncDispose]()))
    },
  }
}

/** Which partition a row's changes go through. */
function placing(
  schema: TableSchema,
  { topic, partitions, pinned }: Registered['route'],
): (key: readonly (string | null)[]) => TopicPartition {
  if (pinned || partitions === 1 || schema.key.length === 0) return () => ({ topic, partition: 0 })
  const encoder = compileEncoder(schema)
  const ring = hashRing(partitions)
  const out = new Output(1024)
  return (key) => {
    const cells = schema.columns.map((_, column): string | null => key[schema.key.indexOf(column)] ?? null)
    out.clear()
    encoder.key(out, rowsOf([cellsOf(cells)]), 0)
    return { topic, partition: ring.partition(out.bytes, 5, out.at) }
  }
}

function mendingOf(schema: TableSchema, due: readonly Sighted[]): Mending {
  const keys = rowsOf(due.map(({ suspect }) => cellsOf(suspect.key)))
  if (schema.key.length === 0) return { keys, rows: keys, copies: due.map(({ source }) => source.copies) }
  return { keys, rows: rowsOf(due.map(({ source: { row } }) => (row === undefined ? [] : cellsOf(row)))) }
}

/** Durable before the row is: what is told may not have been done, what was done is told. */
async function record(audit: string, schema: TableSchema, written: readonly Sighted[]): Promise<void> {
  if (written.length === 0) return
  const at = new Date().toISOString()
  const { username: by } = userInfo()
  const table = tableName(schema.table)
  const lines = written.map(({ suspect: { key }, source: { copies } }) => {
    const action = copies === 0 ? 'remove' : 'copy'
    return `${JSON.stringify({ at, by, table, key, action, copies })}\n`
  })
  await appendFile(audit, lines.join(''), { mode: 0o600, flush: true })
}
