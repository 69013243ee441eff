import { putAlone, type StateStore } from '../coordinate/state-store.ts'
import type { ErrorCode } from '../errors.ts'
import { tableName } from '../model.ts'
import { registeredTables } from '../registry.ts'
import { standing, type Coverage, type Standing, type Stretch, type TableCover } from './coverage.ts'
import type { Verdict } from './journal.ts'
import type { OpenState } from './open-rows.ts'
import { readVerified, type Verified } from './report.ts'

/** What a continuous verification leaves for the next one, and for the status. Counts are since `since`; times in ms since 1970. */
export type Watched = {
  readonly v: 1
  readonly since: number
  /** When this was written; every few seconds while it runs. */
  readonly at: number
  /** Walks over all tables that have ended, and the one under way. */
  readonly walks: number
  readonly walk?: { readonly began: number; readonly rows: number; readonly estimatedRows: number } | undefined
  readonly changes: {
    /** Why they are not followed. */
    readonly why?: string | undefined
    readonly stretch?: Stretch | undefined
    /** Next offsets by topic: a row's change before them was looked at, or counted as passed over. */
    readonly offsets: Readonly<Record<string, readonly number[]>>
    readonly looked: number
    readonly passedOver: number
  }
  readonly open: OpenState
  readonly trouble?: { readonly code: ErrorCode; readonly observed: string; readonly at: number } | undefined
}

const key = 'watch'
const tablePrefix = 'watch/table/'

export async function readWatched(store: StateStore, signal: AbortSignal): Promise<Watched | undefined> {
  return (await store.get(key, signal))?.value as Watched | undefined
}

async function readCovers(store: StateStore, signal: AbortSignal): Promise<ReadonlyMap<string, TableCover>> {
  const covers = new Map<string, TableCover>()
  for (const { key, value } of await store.list(tablePrefix, signal))
    if (value !== null) covers.set(key.slice(tablePrefix.length), value as TableCover)
  return covers
}

/** What the status tells of verification: the last one that read everything, and the continuous one, if there ever was one. */
export type Verification = {
  readonly standing: Standing
  readonly last?: Verified | undefined
  readonly continuous?: Watched | undefined
}

export async function readVerification(store: StateStore, signal: AbortSignal): Promise<Verification | undefined> {
  const last = await readVerified(store, signal)
  const continuous = await readWatched(store, signal)
  if (continuous === undefined) {
    if (last === undefined) return undefined
    return { standing: standingOf(last), last }
  }
  const coverage = coverageOf(continuous, await readCovers(store, signal))
  const tables = (await registeredTables(store, signal)).map(({ schema }) => tableName(schema.table))
  return { standing: withShapes(beside(standing(coverage, tables), last), last?.shapes), last, continuous }
}

/** Rows that somebody else's verification named are not the continuous one's, which tells of them once it has read all behind it. */
function beside(now: Standing, last: Verified | undefined): Standing {
  if (last === undefined || last.walk === true || last.differences === 0 || now.verdict === 'different') return now
  if ((now.oldest ?? 0) > last.ended) return now
  const why = `crossfade verify found ${last.differences} ${last.differences === 1 ? 'row' : 'rows'} different, and not everything was read again since`
  return { ...now, verdict: 'different', why }
}

/** Rows that are equal are not all. */
function withShapes(rows: Standing, shapes: Verdict = 'unknown'): Standing {
  if (shapes === 'equal' || rows.verdict !== 'equal') return rows
  const why =
    shapes === 'different' ? 'the tables are not made of the same' : 'what the tables are made of was not compared'
  return { ...rows, verdict: shapes, why }
}

/** Of some tables alone, or of rows alone, it says nothing about the whole, unless they differ. */
function standingOf({ verdict, why, began, others = 0, shapes }: Verified): Standing {
  if (verdict === 'equal' && others > 0)
    return { verdict: 'unknown', why: `${others} tables of the pipeline were not asked for`, oldest: began }
  if (verdict === 'equal') return withShapes({ verdict, oldest: began }, shapes)
  return { verdict, ...(why !== undefined && { why }), oldest: began }
}

export function coverageOf({ open, changes }: Watched, tables: ReadonlyMap<string, TableCover>): Coverage {
  return { tables, open, changes: changes.stretch }
}

/** Writes for whoever holds the lease of the continuous verification. */
export interface Keeper {
  readonly watched: Watched | undefined
  readonly covers: ReadonlyMap<string, TableCover>
  keep(watched: Watched, signal: AbortSignal): Promise<void>
  /** `undefined`: the table is no longer of the pipeline. */
  cover(table: string, cover: TableCover | undefined, signal: AbortSignal): Promise<void>
}

export async function openKeeper(store: StateStore, signal: AbortSignal): Promise<Keeper> {
  const stored = await store.get(key, signal)
  let watched = stored?.value as Watched | undefined
  let revision = stored?.revision ?? 0
  const revisions = new Map<string, number>()
  const covers = new Map<string, TableCover>()
  for (const { key, value, revision } of await store.list(tablePrefix, signal)) {
    const table = key.slice(tablePrefix.length)
    revisions.set(table, revision)
    if (value !== null) covers.set(table, value as TableCover)
  }
  return {
    get watched() {
      return watched
    },
    covers,
    async keep(next, signal) {
      revision = await putAlone(store, key, next, revision, signal)
      watched = next
    },
    async cover(table, cover, signal) {
      const name = `${tablePrefix}${table}`
      revisions.set(table, await putAlone(store, name, cover ?? null, revisions.get(table) ?? 0, signal))
      if (cover === undefined) covers.delete(table)
      else covers.set(table, cover)
    },
  }
}
