import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import type { PipelineConfig } from '../config/pipeline-config.ts'
import type { Sink, Source, TableFilter } from '../connector.ts'
import { leases } from '../coordinate/lease.ts'
import type { StateStore } from '../coordinate/state-store.ts'
import { asFailure, Failure } from '../errors.ts'
import type { Logger } from '../logger.ts'
import { tableName, type Position, type Range, type TableSchema } from '../model.ts'
import { partsOf, type Connectors } from '../parts.ts'
import { hasEnded, thisProcess } from '../process-identity.ts'
import { registeredTables } from '../registry.ts'
import { unread, verifyChunk } from './chunk.ts'
import type { Ends } from './compare.ts'
import {
  createJournal,
  readJournal,
  resumeJournal,
  type Begin,
  type ChunkLine,
  type End,
  type Journal,
  type Line,
  type Planned,
  type ShapesLine,
} from './journal.ts'
import { joined, workOf } from './plan.ts'
import { emptyReport, keepSummary, summarise, type Report } from './report.ts'
import { settleShapes, shapeLimits } from './settle-shapes.ts'
import { withCause, type Witness } from './settle.ts'
import { timed } from './timed.ts'
import { throttle, type Limits, type Throttle } from './throttle.ts'
import { told } from './told.ts'
import { witnessFor } from './witness.ts'

/** Times in ms. */
export type VerifyOptions = Limits & {
  /** Absent: all tables of the pipeline. */
  readonly tables?: TableFilter | undefined
  /** Pieces that are compared at once, each with a connection to each end. */
  readonly jobs: number
  readonly settleMs: number
  readonly readMs: number
  readonly withValues: boolean
  /** Does not go on with a verification that was interrupted. */
  readonly fresh: boolean
  /** What is compared; absent: what the tables are made of, and their rows. */
  readonly only?: 'schema' | 'data' | undefined
}
type Controls = { readonly signal: AbortSignal; readonly watch: (report: Report) => void }

const leaseMs = 15_000
/** Rows between two bounds that are looked up before anything is compared. */
const rangeRows = 20_000
/** Rows that one statement reads at most, however fast they are. */
const mostRows = 500_000
const attempts = 3
/** How long after its last piece an interrupted verification is worth going on with: what it has compared is what it says of now. */
const freshMs = 24 * 3600 * 1000

/** Where a pipeline's last verification stands. */
export function journalPath(config: PipelineConfig): string {
  return join(config.dir, `${config.name}.verify.jsonl`)
}

/** Compares both ends of a pipeline, which may be running: what differs is told once it is certain that it is not under way. Goes on where one that was
 *  killed has stopped. VERIFY_RUNNING if another process does it; rejects also when the signal aborts, with the journal left to go on from. With
 *  `only: schema` nothing is written or kept, and others may verify meanwhile. */
export async function verifyPipeline(
  config: PipelineConfig,
  connectors: Connectors,
  log: Logger,
  options: VerifyOptions,
  { signal, watch }: Controls,
): Promise<Report> {
  const parts = await partsOf(config, connectors, log)
  await using store = await parts.store(signal)
  const free = options.only === 'schema'
  await using lease = free
    ? undefined
    : await leases(store, thisProcess(), { hasEnded }).tryAcquire('verify', leaseMs, signal)
  if (lease === undefined && !free) throw new Failure('VERIFY_RUNNING', { object: config.name })
  const under = AbortSignal.any([signal, ...(lease === undefined ? [] : [lease.signal])])
  await using source = await parts.source(store, under)
  await using sink = await parts.sink(under)
  const witness = await witnessFor(source, sink, store, under)
  const limits = throttle(options, source.load && (async (signal) => (await source.load?.(signal)) ?? 0))
  const through = { source, sink, store, witness, limits }
  if (free) return await verifyShapes(config, through, options, under)
  return await verifyTables(config, through, options, { path: journalPath(config), signal: under, watch })
}

/** What one verification works with. */
export type Through = {
  readonly source: Source
  readonly sink: Sink
  readonly store: StateStore
  readonly witness: Witness
  readonly limits: Throttle
}
export type WalkControls = Controls & {
  /** Of the journal; an unfinished one there is gone on with. */
  readonly path: string
  /** Told of each piece once it is in the journal; a resumed journal's pieces are not told again. */
  readonly heard?: (lines: readonly Line[], report: Report) => Promise<void>
  /** A place up to which the target has applied everything; noted with each piece that is read after it. */
  readonly applied?: (signal: AbortSignal) => Promise<Position | undefined>
}

/** One verification, from its plan to its verdict, which is kept for the status. */
export async function verifyTables(
  config: PipelineConfig,
  through: Through,
  options: VerifyOptions,
  controls: WalkControls,
): Promise<Report> {
  const { source, sink, store, limits } = through
  const { path, signal, watch } = controls
  const schemas = await schemasOf(config, through, options, signal)
  mkdirSync(config.dir, { recursive: true })
  const servers = [await source.identity?.(signal), await sink.identity?.(signal)].map((name) => name ?? '')
  const asked = { pipeline: config.name, withValues: options.withValues, servers }
  const former = options.fresh ? undefined : await unfinished(path, asked, schemas)
  const others = (await registeredTables(store, signal)).length - schemas.length
  const begin = async (): Promise<Begin> => ({
    ...(await plan(config.name, schemas, source, options, signal)),
    servers,
    ...(others > 0 && { others }),
  })
  const report = former ?? emptyReport(await begin())
  await using journal = former === undefined ? await createJournal(path, report.begin) : await resumeJournal(path)
  watch(report)
  const run: Run = { ...through, ...controls, journal, report, options, schemas }
  if (options.only !== 'data') {
    const shapes = await shapesOf(through, schemas, options, signal)
    await journal.append([shapes])
    summarise(report, shapes)
  }
  await compareAll(run, async (rows, signal) => await limits.pass(rows, signal), signal)
  const end = await judgeWhole(run, limits.waitedMs, signal)
  await journal.append([end])
  summarise(report, end)
  watch(report)
  await keepSummary(store, report, controls.heard !== undefined, signal)
  return report
}

/** What the tables are made of, alone. */
async function verifyShapes(
  config: PipelineConfig,
  through: Through,
  options: VerifyOptions,
  signal: AbortSignal,
): Promise<Report> {
  const about = { v: 1, pipeline: config.name, withValues: false, tables: [] } as const
  const report = emptyReport({ kind: 'begin', at: Date.now(), ...about })
  const shapes = await shapesOf(through, await schemasOf(config, through, options, signal), options, signal)
  summarise(report, shapes)
  const { at, verdict, why } = shapes
  summarise(report, { kind: 'end', at, verdict, throttledMs: 0, ...(why !== undefined && { why }) })
  return report
}

async function shapesOf(
  { source, sink, store, witness }: Through,
  schemas: readonly Described[],
  { settleMs }: VerifyOptions,
  signal: AbortSignal,
): Promise<ShapesLine> {
  const streams = (await store.get('complete', signal)) === undefined
  const live = new Map(schemas.map(({ schema, copied }) => [tableName(schema.table), copied]))
  const all = schemas.every(({ copied }) => copied)
  // A partitioned table has no copy of its own.
  const situation = { streams, live: (table: string) => live.get(table) ?? all }
  const tables = schemas.map(({ schema }) => schema)
  const limits = { limitMs: settleMs, ...shapeLimits }
  return await settleShapes({ source, sink }, tables, witness, situation, limits, signal)
}

type Run = Omit<Through & WalkControls, 'signal'> & {
  readonly journal: Journal
  readonly report: Report
  readonly options: VerifyOptions
  readonly schemas: readonly Described[]
}
/** `copied`: all its rows came once. `why`: it cannot be compared. */
export type Described = { readonly schema: TableSchema; readonly copied: boolean; readonly why?: string }

/** The pipeline's tables as the source has them now, and why one of them cannot be compared yet. */
export async function schemasOf(
  config: PipelineConfig,
  { source, sink, store }: Pick<Through, 'source' | 'sink' | 'store'>,
  { tables }: Pick<VerifyOptions, 'tables'>,
  signal: AbortSignal,
): Promise<readonly Described[]> {
  const registered = await registeredTables(store, signal)
  if (registered.length === 0) throw new Failure('NOT_BEGUN', { object: config.name })
  const wanted = registered.filter(({ schema }) => tables === undefined || tables(schema.table))
  if (wanted.length === 0)
    throw new Failure('USAGE', {
      observed: 'no table of the pipeline has such a name',
      next: 'crossfade status lists them',
    })
  const names = new Set(wanted.map(({ schema }) => tableName(schema.table)))
  const now = await source.tables((table) => names.has(tableName(table)), signal)
  const found = new Map(now.map((schema) => [tableName(schema.table), schema]))
  const live = new Set((await sink.copies(signal)).flatMap(({ table, live }) => (live ? tableName(table) : [])))
  // A full copy that is complete stays held.
  const all = config.mode === 'incremental' || (await store.get('complete', signal)) !== undefined
  return wanted.map(({ schema }) => {
    const name = tableName(schema.table)
    const current = found.get(name)
    const copied = all || live.has(name)
    if (current === undefined) return { schema, copied, why: 'TABLE_MISSING: no longer at the source' }
    return copied ? { schema: current, copied } : { schema: current, copied, why: 'its copy is not complete yet' }
  })
}

async function plan(
  pipeline: string,
  schemas: readonly Described[],
  source: Source,
  { withValues }: VerifyOptions,
  signal: AbortSignal,
): Promise<Begin> {
  const at = Date.now()
  const tables: Planned[] = []
  await using reader = await source.reader('now', signal)
  for (const { schema, why } of schemas) {
    const about = describe(schema)
    if (why !== undefined) tables.push({ ...about, ranges: [], why })
    else {
      try {
        tables.push({ ...about, ranges: await rangesOf(schema) })
      } catch (error) {
        if (signal.aborted) throw error
        tables.push({ ...about, ranges: [], why: told(error) })
      }
    }
  }
  async function rangesOf(schema: TableSchema): Promise<readonly Range[]> {
    const ranges = await reader.ranges(schema, rangeRows, signal)
    const [whole] = ranges
    // Rows without a key are read once, as long as they do not differ.
    if (ranges.length > 1 || whole === undefined || schema.key.length === 0) return ranges
    return whole.estimatedRows > 2 * mostRows ? await reader.split(schema, whole, mostRows, signal) : ranges
  }
  const size = ({ ranges }: Planned): number => ranges.reduce((sum, { estimatedRows }) => sum + estimatedRows, 0)
  tables.sort((a, b) => size(b) - size(a))
  return { kind: 'begin', v: 1, pipeline, at, withValues, tables }
}

function describe({ table, columns, key }: TableSchema): Omit<Planned, 'ranges'> {
  return {
    table: tableName(table),
    columns: columns.map(({ name }) => name),
    key: key.flatMap((column) => columns[column]?.name ?? []),
  }
}

/** What an interrupted verification of the same tables has found so far. */
async function unfinished(
  path: string,
  { pipeline, withValues, servers }: Pick<Begin, 'pipeline' | 'withValues' | 'servers'>,
  schemas: readonly Described[],
): Promise<Report | undefined> {
  if (!existsSync(path)) return undefined
  let report: Report | undefined
  let newest = 0
  for await (const line of readJournal(path)) {
    if (line.kind === 'begin' || line.kind === 'chunk') newest = line.at
    if (line.kind === 'begin') {
      const asked = schemas.map(({ schema, why }) => ({ ...describe(schema), why }))
      const begun = line.tables.map(({ table, columns, key, why }) => ({ table, columns, key, why }))
      const byName = (a: { readonly table: string }, b: { readonly table: string }): number =>
        a.table < b.table ? -1 : 1
      const same = isDeepStrictEqual(asked.toSorted(byName), begun.toSorted(byName))
      if (line.pipeline !== pipeline || line.withValues !== withValues || !same) return undefined
      if (!isDeepStrictEqual(line.servers, servers)) return undefined
      report = emptyReport(line)
    } else if (line.kind === 'end') return undefined
    else if (report !== undefined) summarise(report, line)
  }
  return Date.now() - newest < freshMs ? report : undefined
}

async function compareAll(
  { source, sink, witness, journal, report, options, schemas, watch, heard, applied }: Run,
  pass: (rows: number, signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const { tables } = report.begin
  const byName = new Map(schemas.map(({ schema }) => [tableName(schema.table), schema]))
  const most = Math.min(mostRows, options.rate ?? mostRows)
  const work = workOf(tables, report.chunks, most)
  const failed = new AbortController()
  const either = AbortSignal.any([signal, failed.signal])
  const job = async (): Promise<void> => {
    await using ends = reopening(source, sink, options.readMs)
    for (let piece = work.take(); piece !== undefined; piece = work.take()) {
      const { table, ranges } = tables[piece.table] ?? { table: '', ranges: [] }
      const schema = byName.get(table)
      if (schema === undefined) continue
      const range = joined(ranges, piece.first, piece.last)
      await pass(range.estimatedRows, either)
      const asOf = await applied?.(either)
      const began = performance.now()
      const compare = async (ends: Ends): Promise<readonly Line[]> => {
        const rows = work.rowsAtOnce(piece.table)
        const large = schema.key.length > 0 && range.estimatedRows > 2 * rows
        const pieces = large ? await ends.source.split(schema, range, rows, either) : [range]
        return await verifyChunk(ends, schema, pieces, piece, witness, { ...options, now: Date.now }, either)
      }
      let lines: readonly Line[]
      try {
        lines = await ends.using(either, compare)
      } catch (error) {
        // Without a server nothing else can be compared either.
        if (either.aborted || asFailure(error).code === 'SERVER_UNREACHABLE') throw error
        lines = [unread(schema, piece, error, Date.now())]
      }
      if (asOf !== undefined)
        lines = lines.map((line) => (line.kind === 'chunk' && line.unread !== true ? { ...line, asOf } : line))
      await journal.append(lines)
      for (const line of lines) summarise(report, line)
      await heard?.(lines, report)
      const chunk = lines.at(-1) as ChunkLine
      // What waited for proofs says nothing about the cost of a row.
      if (chunk.verdict === 'equal' && chunk.transient === 0) work.done(piece, chunk.source, performance.now() - began)
      watch(report)
    }
  }
  const jobs = Array.from({ length: options.jobs }, async () => {
    try {
      await job()
    } catch (error) {
      failed.abort(error)
      throw error
    }
  })
  const outcomes = await Promise.allSettled(jobs)
  if (outcomes.some(({ status }) => status === 'rejected')) throw failed.signal.reason
}

/** A pair of readers, opened anew where a connection was lost: a piece is begun again a few times. */
export function reopening(
  source: Source,
  sink: Sink,
  readMs: number,
): AsyncDisposable & {
  using<T>(signal: AbortSignal, work: (ends: Ends) => Promise<T>): Promise<T>
} {
  let ends: Ends | undefined
  const close = async (): Promise<void> => {
    const closing = ends
    ends = undefined
    await Promise.allSettled([closing?.source[Symbol.asyncDispose](), closing?.target[Symbol.asyncDispose]()])
  }
  return {
    async using(signal, work) {
      for (let attempt = 1; ; attempt++) {
        try {
          ends ??= {
            source: timed(await source.reader('now', signal), readMs),
            target: timed(await sink.reader(signal), readMs),
          }
          return await work(ends)
        } catch (error) {
          await close()
          if (signal.aborted || attempt === attempts || asFailure(error).policy !== 'retry') throw error
          await sleep(500 * attempt, undefined, { signal })
        }
      }
    },
    [Symbol.asyncDispose]: close,
  }
}

/** Equal parts make an equal whole only where nothing is under way that nobody has seen: all that the source had committed when the last part was read is
 *  visible there, and applied at the target. */
async function judgeWhole({ witness, report, options }: Run, throttledMs: number, signal: AbortSignal): Promise<End> {
  const end = (verdict: End['verdict'], why?: string): End => ({
    kind: 'end',
    at: Date.now(),
    verdict,
    throttledMs,
    ...(why !== undefined && { why }),
  })
  const { shapes } = report
  const states = report.tables.map(({ verdict }) => verdict)
  if (states.includes('different')) return end('different')
  if (shapes?.verdict === 'different') return end('different', 'the tables are not made of the same at both ends')
  if (states.includes('unknown')) return end('unknown', 'some tables could not be verified')
  if (shapes?.verdict === 'unknown') return end('unknown', 'whether the tables are made of the same is not known')
  const limit = AbortSignal.timeout(options.settleMs)
  const until = AbortSignal.any([signal, limit])
  let waitsFor = 'a commit at the source that is in its log is not visible yet'
  try {
    const position = await witness.visible(until)
    waitsFor = 'the target has not applied all that the source had committed'
    await witness.applied(position, until)
    return end('equal')
  } catch (error) {
    if (signal.aborted) throw error
    return end('unknown', limit.aborted ? withCause(waitsFor, error) : told(error))
  }
}
