import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { schemaReader } from '../avro/schema-ids.ts'
import { followWatermarks } from '../capture/follow.ts'
import type { ChangeLog } from '../change-log/change-log.ts'
import { schemasTopic } from '../change-log/topics.ts'
import type { PipelineConfig } from '../config/pipeline-config.ts'
import { leases } from '../coordinate/lease.ts'
import { asFailure, Failure } from '../errors.ts'
import { tableName, type TableSchema } from '../model.ts'
import type { Logger } from '../logger.ts'
import { partsOf, type Connectors, type Parts } from '../parts.ts'
import { hasEnded, thisProcess } from '../process-identity.ts'
import { registeredTables } from '../registry.ts'
import { runLoop } from '../run-loop.ts'
import { coverOf } from './coverage.ts'
import { followChanges, type Following } from './follow-changes.ts'
import { readJournal, type DifferenceLine, type Line, type UnsettledLine } from './journal.ts'
import { lookAt, sightOfLine, type Look } from './look.ts'
import { mostOpen, openRows, type OpenRows } from './open-rows.ts'
import type { Report } from './report.ts'
import { throttle, type Throttle } from './throttle.ts'
import { reopening, schemasOf, verifyTables, type Through } from './verify.ts'
import { openKeeper, readVerification, type Keeper, type Verification, type Watched } from './watched.ts'
import { provedApplied, witnessFor } from './witness.ts'

export type ContinuousOptions = {
  /** Rows of the source a second; changed rows take half of it at most. */
  readonly rate: number
  /** As of `verify`. */
  readonly maxLoad?: number | undefined
}
type Controls = {
  readonly signal: AbortSignal
  /** Within the process that runs the pipeline: waits for another that verifies already; otherwise VERIFY_RUNNING. */
  readonly inside: boolean
  readonly watch: (report: Report) => void
}

const leaseName = 'continuous'
const leaseMs = 15_000
/** Between the beginnings of two walks at least. */
const walkEveryMs = 10_000
/** A piece counts as so many rows at least: with thousands of small tables it is what costs. */
const leastRows = 100
const tickMs = 500
const recheckMs = 10_000
/** A row without a key is found by reading its whole table: so many times as long as that took, it is not read again. */
const keylessPause = 20
const describeMs = 60_000
/** Rows that changed and are looked at in one go. */
const mostRows = 1_000
const settleMs = 10_000
const keepMs = 5_000
const farewellMs = 2_000

/** Where the walk of a pipeline's continuous verification stands. */
export function walkPath(config: PipelineConfig): string {
  return join(config.dir, `${config.name}.walk.jsonl`)
}

/** Verifies a pipeline for ever: rows that change soon after they were applied, and everything else by walks over all tables, one after the other. What
 *  differs stays open until it is found equal again. What it knows is kept in the state store, and gone on from after a restart. Ends only by
 *  `signal`, or rejects with what no retry can help. */
export async function verifyContinuously(
  parts: Parts,
  options: ContinuousOptions,
  { signal, inside, watch }: Controls,
): Promise<never> {
  await using store = await parts.store(signal)
  const own = leases(store, thisProcess(), { hasEnded })
  let patient = inside
  return await runLoop('verification', parts.log, signal, async () => {
    // One that could not be given back in time is still our own.
    await using lease = patient
      ? await own.acquire(leaseName, leaseMs, signal)
      : await own.tryAcquire(leaseName, leaseMs, signal)
    if (lease === undefined) throw new Failure('VERIFY_RUNNING', { object: parts.config.name })
    patient = true
    const under = AbortSignal.any([signal, lease.signal])
    const keeper = await openKeeper(store, under)
    await using source = await parts.source(store, under)
    await using sink = await parts.sink(under)
    const still = (await store.get('complete', under)) !== undefined
    const witness = await witnessFor(source, sink, store, under)
    const limits = throttle(options, source.load && (async (signal) => (await source.load?.(signal)) ?? 0))
    const through: Through = { source, sink, store, witness, limits }
    const unread = still ? 'nothing changes any more' : whyUnread(parts, inside)
    await using log = unread === undefined ? await parts.changeLog(under) : undefined
    const attempt = attemptOf(parts, through, options, keeper, { log, unread, watch })
    return await attempt.run(under)
  })
}

/** In a process of its own, until `signal` aborts: resolves to where it stands then. */
export async function verifyUntilStopped(
  config: PipelineConfig,
  connectors: Connectors,
  log: Logger,
  options: ContinuousOptions,
  { signal, watch }: Pick<Controls, 'signal' | 'watch'>,
): Promise<Verification | undefined> {
  const parts = await partsOf(config, connectors, log)
  try {
    await verifyContinuously(parts, options, { signal, inside: false, watch })
  } catch (error) {
    if (!signal.aborted) throw error
  }
  const soon = AbortSignal.timeout(farewellMs)
  await using store = await parts.store(soon)
  return await readVerification(store, soon)
}

/** The embedded log belongs to the process that runs; opened elsewhere it could only be in its way. */
function whyUnread({ config }: Parts, inside: boolean): string | undefined {
  return config.log.type === 'embedded' && !inside
    ? 'the embedded log can only be read by the process that runs the pipeline; verify.schedule: continuous lets it'
    : undefined
}

type Attempt = { run(signal: AbortSignal): Promise<never> }

function attemptOf(
  { config }: Parts,
  through: Through,
  options: ContinuousOptions,
  keeper: Keeper,
  {
    log,
    unread,
    watch,
  }: { readonly log: ChangeLog | undefined; readonly unread: string | undefined; readonly watch: Controls['watch'] },
): Attempt {
  const { source, sink, store, witness } = through
  const former = keeper.watched
  const open = openRows(former?.open)
  const schemas = log && schemaReader(log, schemasTopic(config.name))
  const following = log && schemas && followChanges(log, schemas, through, former?.changes)
  const since = former?.since ?? Date.now()
  let walks = former?.walks ?? 0
  let walk = former?.walk
  let trouble = former?.trouble
  /** By name, as they are at the source now. */
  let tables: ReadonlyMap<string, TableSchema> = new Map()
  let written = ''

  const keep = async (signal: AbortSignal): Promise<void> => {
    const changes = following?.state(keeper.covers) ?? {
      why: unread,
      offsets: {},
      looked: former?.changes.looked ?? 0,
      passedOver: former?.changes.passedOver ?? 0,
    }
    const next: Watched = { v: 1, since, at: Date.now(), walks, walk, changes, open: open.state, trouble }
    written = news(next)
    await keeper.keep(next, signal)
  }
  /** What is told at once. */
  const news = ({ walks, open, trouble }: Pick<Watched, 'walks' | 'open' | 'trouble'>): string =>
    JSON.stringify([walks, open, trouble])

  const keeping = async (signal: AbortSignal): Promise<never> => {
    for (let last = Number.NEGATIVE_INFINITY; ; await sleep(tickMs, undefined, { signal })) {
      const isNews = news({ walks, open: open.state, trouble }) !== written
      if (!isNews && performance.now() - last < keepMs) continue
      last = performance.now()
      await keep(signal)
    }
  }

  const describe = async (signal: AbortSignal): Promise<void> => {
    const registered = await registeredTables(store, signal)
    const described = await schemasOf(config, through, {}, signal)
    const live = new Map(
      described.flatMap(({ schema, why }) => (why === undefined ? [[tableName(schema.table), schema] as const] : [])),
    )
    tables = live
    const names = new Set(registered.map(({ schema }) => tableName(schema.table)))
    open.keepOnly(names)
    for (const name of keeper.covers.keys()) if (!names.has(name)) await keeper.cover(name, undefined, signal)
    const now = registered.flatMap((table) => {
      const schema = live.get(tableName(table.schema.table))
      return schema === undefined ? [] : [{ ...table, schema }]
    })
    await following?.describe(now, signal)
  }

  /** Looks at rows by table; those that could not be settled and found no room. */
  const look = async (
    looks: readonly Look[],
    limitMs: number,
    ends: ReturnType<typeof reopening>,
    signal: AbortSignal,
  ): Promise<{ readonly unseen: readonly string[]; readonly doubtful: boolean }> => {
    await through.limits.spend(
      looks.reduce((sum, { rows }) => sum + rows.length, 0),
      signal,
    )
    const sights = await ends.using(signal, async (ends) => await lookAt(ends, looks, witness, limitMs, signal))
    const at = Date.now()
    const unseen = sights.flatMap((sight) => (open.saw(sight, at) ? [] : sight.table))
    return { unseen, doubtful: sights.some(({ verdict }) => verdict === 'unknown') }
  }

  const watching = async (signal: AbortSignal): Promise<never> => {
    await using ends = reopening(source, sink, 60_000)
    let described = Number.NEGATIVE_INFINITY
    let budget = 0
    let rechecked = performance.now()
    let keylessAt = 0
    for (;;) {
      const tick = performance.now()
      if (tick - described > describeMs) {
        await describe(signal)
        described = tick
      }
      const doubtful = following !== undefined && (await lookAtChanges(following, Math.floor(budget), ends, signal))
      if (performance.now() - rechecked > recheckMs) {
        const keyless = performance.now() > keylessAt
        await recheck(keyless, ends, signal)
        const now = performance.now()
        if (keyless) keylessAt = now + keylessPause * Math.max(0, now - tick - settleMs)
        rechecked = now
      }
      // Perhaps the table is another by now.
      if (doubtful) described = Math.min(described, tick - describeMs + recheckMs)
      const left = tickMs - (performance.now() - tick)
      if (left > 0) await sleep(left, undefined, { signal })
      budget = Math.min(mostRows, Math.max(1, (options.rate / 2) * ((performance.now() - tick) / 1000)))
    }
  }

  const lookAtChanges = async (
    following: Following,
    most: number,
    ends: ReturnType<typeof reopening>,
    signal: AbortSignal,
  ): Promise<boolean> => {
    const round = await following.next(Math.max(1, most), signal)
    if (round === undefined) return false
    const looks = [...round.rows].flatMap(([name, rows]) => {
      const schema = tables.get(name)
      return schema === undefined ? [] : { schema, rows }
    })
    const seen = looks.length > 0 ? await look(looks, settleMs, ends, signal) : { unseen: [], doubtful: false }
    await following.accept(round, seen.unseen, signal)
    trouble = undefined
    return seen.doubtful
  }

  const recheck = async (keyless: boolean, ends: ReturnType<typeof reopening>, signal: AbortSignal): Promise<void> => {
    const looks = [...Map.groupBy(open.state.rows, ({ table }) => table)].flatMap(([name, rows]): Look[] => {
      const schema = tables.get(name)
      if (schema === undefined || (schema.key.length === 0 && !keyless)) return []
      return [{ schema, rows: rows.map(({ key }) => ({ key })) }]
    })
    const [keyed, whole] = [true, false].map((has) => looks.filter(({ schema }) => schema.key.length > 0 === has))
    if (keyed !== undefined && keyed.length > 0) await look(keyed, settleMs, ends, signal)
    if (whole !== undefined && whole.length > 0) await look(whole, 6 * settleMs, ends, signal)
  }

  const walking = async (signal: AbortSignal): Promise<never> => {
    /** Tables of which a row in doubt found no room in this walk. */
    let crowded = new Set(await recall(walkPath(config), open))
    const rest = { jobs: 1, settleMs: 6 * settleMs, readMs: 60_000, withValues: false, fresh: false }
    for (;;) {
      const began = performance.now()
      const heard = async (lines: readonly Line[], report: Report): Promise<void> => {
        trouble = undefined
        for (const line of lines) if (!note(open, line)) crowded.add(tableOf(line))
        const chunk = lines.at(-1)
        const cover = chunk?.kind === 'chunk' ? coverOf(report, chunk.table, crowded.has(chunk.table)) : undefined
        if (chunk?.kind === 'chunk' && cover !== undefined) await keeper.cover(chunk.table, cover, signal)
      }
      const report = await verifyTables(
        config,
        { ...through, limits: atLeast(leastRows, through.limits) },
        { ...options, ...rest },
        {
          path: walkPath(config),
          signal,
          heard,
          applied: async (signal) => await provedApplied(sink, store, signal),
          watch: (report) => {
            walk = progressOf(report)
            watch(report)
          },
        },
      )
      for (const { table, ranges } of report.begin.tables) {
        const cover = ranges.length === 0 ? coverOf(report, table, false) : undefined
        if (cover !== undefined) await keeper.cover(table, cover, signal)
      }
      open.walked()
      crowded = new Set()
      walks++
      walk = undefined
      await sleep(Math.max(0, walkEveryMs - (performance.now() - began)), undefined, { signal })
    }
  }

  return {
    async run(signal) {
      const failed = new AbortController()
      const either = AbortSignal.any([signal, failed.signal])
      const guarded = async (work: (signal: AbortSignal) => Promise<unknown>): Promise<void> => {
        try {
          await work(either)
        } catch (error) {
          failed.abort(error)
        }
      }
      await Promise.all([
        guarded(walking),
        guarded(watching),
        guarded(keeping),
        ...(log === undefined || following === undefined
          ? []
          : [
              guarded(async (signal) => {
                await followWatermarks(log, config.name, (record) => following.trail.add(record), signal)
              }),
            ]),
      ])
      const error: unknown = failed.signal.reason
      const { code, facts, message } = asFailure(error)
      if (!signal.aborted) trouble = { code, observed: facts.observed ?? message, at: Date.now() }
      await keep(AbortSignal.timeout(farewellMs)).catch(() => {})
      throw error
    },
  }
}

/** What a walk tells of a single row; false if it found no room. */
function note(open: OpenRows, line: Line): boolean {
  if (line.kind === 'difference') return open.saw(sightOfLine(line), line.firstSeen)
  if (line.kind !== 'unsettled') return true
  const { table, key, why } = line
  return open.saw({ verdict: 'unknown', table, key, columns: [], why }, Date.now())
}

const tableOf = (line: Line): string => ('table' in line ? line.table : '')

/** A process that was killed may have written down a row in the journal of its walk alone. Until it is looked at again nobody knows what it is.
 *  Resolves to the tables of those that found no room. */
async function recall(path: string, open: OpenRows): Promise<readonly string[]> {
  if (!existsSync(path)) return []
  const why = 'it was not found equal before a restart, and has not been looked at since'
  const doubtful: (DifferenceLine | UnsettledLine)[] = []
  const left = new Set<string>()
  for await (const line of readJournal(path)) {
    if (line.kind === 'end') return []
    if (line.kind !== 'difference' && line.kind !== 'unsettled') continue
    if (doubtful.length < mostOpen) doubtful.push(line)
    else left.add(line.table)
  }
  for (const { table, key } of doubtful)
    if (!open.saw({ verdict: 'unknown', table, key, columns: [], why }, Date.now())) left.add(table)
  return [...left]
}

/** For one walk: counts its time alone, and each piece as so many rows. */
function atLeast(least: number, limits: Throttle): Throttle {
  const before = limits.waitedMs
  return {
    pass: async (rows, signal) => await limits.pass(Math.max(rows, least), signal),
    spend: async (rows, signal) => await limits.spend(rows, signal),
    get waitedMs() {
      return limits.waitedMs - before
    },
  }
}

function progressOf({ begin, tables }: Report): NonNullable<Watched['walk']> {
  const rows = tables.reduce((sum, { source }) => sum + source, 0)
  const estimatedRows = begin.tables.reduce(
    (sum, { ranges }) => sum + ranges.reduce((rows, range) => rows + range.estimatedRows, 0),
    0,
  )
  return { began: begin.at, rows, estimatedRows }
}
