import type { StateStore } from '../coordinate/state-store.ts'
import type { Begin, ChunkLine, DifferenceLine, End, Line, Planned, ShapesLine, Verdict } from './journal.ts'

/** What was found in a table. It is equal only when every range of it was read and is. */
export type TableReport = {
  readonly table: string
  verdict: Verdict
  /** The first reason for what is not known. */
  why?: string
  /** Ranges read, of all. */
  rangesDone: number
  readonly ranges: number
  /** Pieces by what they came to. */
  readonly pieces: Record<Verdict, number>
  source: number
  target: number
  onlySource: number
  onlyTarget: number
  different: number
  unsettled: number
  transient: number
  rechecks: number
}
/** `samples`: the first differences of each table, `sampled` how many; the counts are of all. `shapes`: absent where only rows were asked for. */
export type Report = {
  readonly begin: Begin
  readonly tables: readonly TableReport[]
  readonly chunks: ChunkLine[]
  readonly samples: DifferenceLine[]
  readonly sampled: Map<string, number>
  shapes?: ShapesLine
  end?: End
}

const samplesOfTable = 20

export function emptyReport(begin: Begin): Report {
  return { begin, tables: begin.tables.map(unseen), chunks: [], samples: [], sampled: new Map() }
}

function unseen({ table, ranges, why }: Planned): TableReport {
  return {
    table,
    verdict: 'unknown',
    ...(why !== undefined && { why }),
    rangesDone: 0,
    ranges: ranges.length,
    pieces: { equal: 0, different: 0, unknown: 0 },
    source: 0,
    target: 0,
    onlySource: 0,
    onlyTarget: 0,
    different: 0,
    unsettled: 0,
    transient: 0,
    rechecks: 0,
  }
}

/** Adds a line of the journal, in its order. */
export function summarise(report: Report, line: Line): void {
  if (line.kind === 'difference') {
    const there = report.sampled.get(line.table) ?? 0
    if (there === samplesOfTable) return
    report.samples.push(line)
    report.sampled.set(line.table, there + 1)
  } else if (line.kind === 'chunk') {
    report.chunks.push(line)
    const table = report.tables.find((one) => one.table === line.table)
    if (table !== undefined) addChunk(table, line)
  } else if (line.kind === 'shapes') report.shapes = line
  else if (line.kind === 'end') report.end = line
}

function addChunk(table: TableReport, chunk: ChunkLine): void {
  table.rangesDone += chunk.last - chunk.first + 1
  table.pieces[chunk.verdict]++
  for (const count of ['source', 'target', 'onlySource', 'onlyTarget', 'different', 'unsettled', 'transient'] as const)
    table[count] += chunk[count]
  table.rechecks = Math.max(table.rechecks, chunk.rechecks)
  if (chunk.why !== undefined) table.why ??= chunk.why
  const whole = table.rangesDone === table.ranges && table.pieces.unknown === 0
  table.verdict = table.pieces.different > 0 ? 'different' : whole ? 'equal' : 'unknown'
}

/** Of the whole: only its end says that it is equal. */
export function verdictOf({ tables, shapes, end }: Report): Verdict {
  if (end !== undefined) return end.verdict
  return [shapes, ...tables].some((one) => one?.verdict === 'different') ? 'different' : 'unknown'
}

/** What a pipeline's status, and whoever decides about it, is told of its last verification. Times in ms since 1970. */
export type Verified = {
  readonly verdict: Verdict
  readonly why?: string
  /** One of those that a continuous verification makes. */
  readonly walk?: true
  readonly began: number
  readonly ended: number
  readonly tables: number
  /** Of the pipeline, not asked for. */
  readonly others?: number
  readonly rows: number
  readonly differences: number
  readonly unsettled: number
  /** Of the tables' definitions; absent where they were not compared. */
  readonly shapes?: Verdict
}

const key = 'verified'

export async function readVerified(store: StateStore, signal: AbortSignal): Promise<Verified | undefined> {
  return (await store.get(key, signal))?.value as Verified | undefined
}

/** For whoever holds the lease of the verification. */
export async function keepSummary(
  store: StateStore,
  report: Report,
  walk: boolean,
  signal: AbortSignal,
): Promise<void> {
  const { begin, tables, shapes, end } = report
  if (end === undefined) return
  const sum = (count: (table: TableReport) => number): number => tables.reduce((all, table) => all + count(table), 0)
  const verified: Verified = {
    verdict: end.verdict,
    ...(end.why !== undefined && { why: end.why }),
    ...(walk && { walk }),
    began: begin.at,
    ended: end.at,
    tables: tables.length,
    ...(begin.others !== undefined && { others: begin.others }),
    rows: sum(({ source }) => source),
    differences: sum(({ onlySource, onlyTarget, different }) => onlySource + onlyTarget + different),
    unsettled: sum(({ unsettled }) => unsettled),
    ...(shapes !== undefined && { shapes: shapes.verdict }),
  }
  const stored = await store.get(key, signal)
  await store.put(key, verified, stored?.revision ?? 0, signal)
}
