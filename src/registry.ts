import { isDeepStrictEqual } from 'node:util'
import type { TableFilter, TableReader } from './connector.ts'
import { putAlone, type StateStore, type Write } from './coordinate/state-store.ts'
import { routes, type Route } from './change-log/topics.ts'
import { Failure } from './errors.ts'
import { tableName, type TableId, type TableSchema, type TopicPartition } from './model.ts'
import type { TablePlan } from './snapshot/plan.ts'

/** What a pipeline knows of a table: as it was recorded, where its changes go (H7), and how it is cut for the copy. */
export type Registered = { readonly schema: TableSchema; readonly route: Route; readonly plan: TablePlan }

/** A table that was left out keeps its topic for the day it is taken in again. `closing`: the target does not know yet. */
type Recorded = Registered & { readonly left?: 'closing' | 'closed' }

const keyOf = (schema: TableSchema): string => `table/${tableName(schema.table)}`

export function partitionsOf({ topic, partitions }: Pick<Route, 'topic' | 'partitions'>): readonly TopicPartition[] {
  return Array.from({ length: partitions }, (_, partition) => ({ topic, partition }))
}

export async function registeredTables(store: StateStore, signal: AbortSignal): Promise<readonly Registered[]> {
  return (await store.list('table/', signal)).flatMap(({ value }) => {
    const table = value as Recorded | null
    return table === null || table.left !== undefined ? [] : table
  })
}

/** Puts aside the tables that the configuration no longer names: `close` is called for each, again after a crash, and before it can be taken in anew.
 *  Resolves to those that were put aside now. */
export async function leaveOut(
  store: StateStore,
  filter: TableFilter,
  close: (table: TableId) => Promise<void>,
  signal: AbortSignal,
): Promise<readonly Registered[]> {
  const gone: Registered[] = []
  for (const { key, value, revision } of await store.list('table/', signal)) {
    const table = value as Recorded | null
    if (table === null || table.left === 'closed') continue
    if (table.left === undefined && filter(table.schema.table)) continue
    const closing = await putAlone(store, key, { ...table, left: 'closing' }, revision, signal)
    await close(table.schema.table)
    await putAlone(store, key, { ...table, left: 'closed' }, closing, signal)
    gone.push(table)
  }
  return gone
}

/** Compares what the source has with what was recorded, and records tables that are new: their ranges, topic, partitions and pinning are
 *  decided here, once: until the pipeline has `begun` they are decided anew. TABLE_CHANGED for a table that is not as recorded and not
 *  among the `followed`, whose changes the source tells of in their place; TABLE_MISSING for one that is gone. */
export async function registerTables(
  pipeline: string,
  found: readonly TableSchema[],
  filter: TableFilter,
  store: StateStore,
  reader: TableReader,
  {
    partitions,
    chunkRows,
    begun,
    followed,
  }: {
    readonly partitions: number
    readonly chunkRows: number
    readonly begun: boolean
    readonly followed: ReadonlySet<string>
  },
  signal: AbortSignal,
): Promise<readonly Registered[]> {
  if (!begun) await forgetTables(store, signal)
  const known = await registeredTables(store, signal)
  const byName = new Map(found.map((schema) => [tableName(schema.table), schema]))
  for (const { schema } of known) {
    const now = byName.get(tableName(schema.table))
    if (now === undefined) {
      throw new Failure('TABLE_MISSING', {
        object: tableName(schema.table),
        observed: filter(schema.table)
          ? 'no longer at the source'
          : 'no longer at the source, or no longer among tables.include',
        needed: 'every table the pipeline began with',
        effect: 'nothing is captured or applied',
        next: `To go on without it, name it under tables.exclude and start again`,
      })
    }
    if (followed.has(tableName(schema.table))) continue
    if (!isDeepStrictEqual({ ...now, version: schema.version }, schema)) {
      throw new Failure('TABLE_CHANGED', {
        object: tableName(schema.table),
        observed: `while it is copied: ${difference(schema, now)}`,
        needed: 'the columns and key it had when it was recorded, until its copy is complete',
        effect: 'nothing is captured or applied',
        next: 'Undo the change at the source, start again, and make it once the pipeline streams; or name the table under tables.exclude, start, stop, and take it in again',
      })
    }
  }
  const names = new Set(known.map(({ schema }) => tableName(schema.table)))
  const added = found.filter((schema) => !names.has(tableName(schema.table)))
  const cut = []
  for (const schema of added) {
    const ranges = await reader.ranges(schema, chunkRows, signal)
    const estimatedRows = ranges.reduce((sum, range) => sum + range.estimatedRows, 0)
    cut.push({ schema, estimatedRows, plan: { generation: 0, ranges } })
  }
  const decided = new Map(routes(pipeline, cut, partitions).map((route) => [tableName(route.table), route]))
  const taken = new Set(known.map(({ route }) => route.topic))
  const fresh: Registered[] = []
  const stored = new Map((await store.list('table/', signal)).map((entry) => [entry.key, entry]))
  for (const { schema, plan: cutNow } of cut) {
    const first = decided.get(tableName(schema.table))
    if (first === undefined) throw new Failure('BUG', { object: tableName(schema.table), observed: 'no route' })
    // Taken in again: its topic is there, and chunks of its former copy do not count.
    const former = stored.get(keyOf(schema))?.value as Recorded | null | undefined
    const route = former ? { ...first, topic: former.route.topic, partitions: former.route.partitions } : first
    const plan = former ? { ...cutNow, generation: former.plan.generation + 1 } : cutNow
    if (taken.has(route.topic)) {
      throw new Failure('TOPIC_MISMATCH', { object: route.topic, observed: 'two tables have this topic name' })
    }
    fresh.push({ schema, route, plan })
  }
  await putAllAlone(
    store,
    fresh.map((table) => {
      const key = keyOf(table.schema)
      return { key, value: table, expected: stored.get(key)?.revision ?? 0 }
    }),
    signal,
  )
  return [...known, ...fresh]
}

async function forgetTables(store: StateStore, signal: AbortSignal): Promise<void> {
  const there = (await store.list('table/', signal)).filter(({ value }) => value !== null)
  await putAllAlone(
    store,
    there.map(({ key, revision }) => ({ key, value: null, expected: revision })),
    signal,
  )
}

async function putAllAlone(store: StateStore, writes: readonly Write[], signal: AbortSignal): Promise<void> {
  if (writes.length === 0 || (await store.putAll(writes, signal))) return
  throw new Failure('FENCED', { object: 'the record of tables', observed: 'another worker wrote it' })
}

/** The next generation of a table's plan: its finished chunks no longer count. */
export async function startOver(store: StateStore, schema: TableSchema, signal: AbortSignal): Promise<void> {
  const stored = await store.get(keyOf(schema), signal)
  if (stored === undefined) return
  const table = stored.value as Registered
  const plan = { ...table.plan, generation: table.plan.generation + 1 }
  await putAlone(store, keyOf(schema), { ...table, plan }, stored.revision, signal)
}

function difference(then: TableSchema, now: TableSchema): string {
  const columns = (schema: TableSchema): readonly string[] =>
    schema.columns.map(({ name, type, nullable }) => `${name} ${type}${nullable ? '' : ' not null'}`)
  const [before, after] = [columns(then), columns(now)]
  const gone = before.filter((column) => !after.includes(column))
  const come = after.filter((column) => !before.includes(column))
  const parts = [
    ...(gone.length > 0 ? [`without ${gone.join(', ')}`] : []),
    ...(come.length > 0 ? [`with ${come.join(', ')}`] : []),
  ]
  return parts.length > 0 ? parts.join('; ') : 'another key, replica identity or unique constraint'
}
