import { setTimeout as sleep } from 'node:timers/promises'
import { watermarkTrail } from '../../../src/admin/lag.ts'
import { applyLane } from '../../../src/apply/apply.ts'
import { createBatcher, type Batcher } from '../../../src/apply/batcher.ts'
import { schemaReader } from '../../../src/avro/schema-ids.ts'
import { capture, readTail } from '../../../src/capture/capture.ts'
import { followWatermarks } from '../../../src/capture/follow.ts'
import { createPublisher } from '../../../src/capture/publisher.ts'
import { routes } from '../../../src/change-log/topics.ts'
import type { Snapshot, Source } from '../../../src/connector.ts'
import { leases } from '../../../src/coordinate/lease.ts'
import { memoryStore, type StateStore } from '../../../src/coordinate/state-store.ts'
import {
  comparePositions,
  origin,
  tableName,
  type Position,
  type TableSchema,
  heartbeatPrefix,
} from '../../../src/model.ts'
import { partitionsOf, registeredTables, startOver, type Registered } from '../../../src/registry.ts'
import { topicsOf } from '../../../src/setup.ts'
import type { CopyParts } from '../../../src/snapshot/copy.ts'
import { memoryLog } from '../../support/memory-log.ts'
import { memorySink, type MemorySink } from '../../support/memory-sink.ts'
import { memorySource, type MemoryDatabase } from '../../support/memory-source.ts'
import { tableOf } from '../apply/rows-for-tests.ts'

/** Milliseconds a chunk's lease lives. */
export const ttl = 300
const pipeline = 'shop'
const chunkRows = 10

// Text only: the sink in memory compares cells as they are encoded.
const columns = tableOf('').columns.map((column) => ({ ...column, form: 'text' as const }))
export const orders: TableSchema = tableOf('orders', { columns })
export const items: TableSchema = tableOf('items', { columns })
/** No key: whole old rows, one partition, one range. */
export const notes: TableSchema = tableOf('notes', { columns, key: [], before: 'row', pinned: true })
export const tables: readonly TableSchema[] = [orders, items, notes]

/** Everything but the copy, at work: changes go from a database in memory to another, and are held where the copy says. */
export interface Way extends AsyncDisposable {
  readonly database: MemoryDatabase
  readonly source: Source
  readonly sink: MemorySink
  readonly store: StateStore
  readonly first: Snapshot | undefined
  /** For `copyRound`; each hook calls `step` with its name before and after what it does. */
  parts(step?: (name: string) => void): CopyParts
  /** Waits until everything committed is in the log and applied as far as holds allow; rejects with what broke on the way. */
  settled(signal: AbortSignal): Promise<void>
  /** Rows at both ends, in an order that can be compared. */
  contents(): { readonly source: unknown; readonly target: unknown }
}

/** With 25 orders, 12 items and 3 notes in the database when it begins. */
export async function memoryWay(signal: AbortSignal): Promise<Way> {
  const database = memorySource(tables)
  const sink = memorySink()
  const log = memoryLog()
  const store = memoryStore()
  const source = database.open()
  for (let n = 0; n < 25; n++) database.commit({ kind: 'insert', table: orders, row: [`${n}`, `o${n}`, null, '1'] })
  for (let n = 0; n < 12; n++) database.commit({ kind: 'insert', table: items, row: [`${n}`, `i${n}`, 'large', '1'] })
  for (let n = 0; n < 3; n++) database.commit({ kind: 'insert', table: notes, row: [`${n}`, 'note', null, null] })
  // Routes as of large tables, ranges as of what is there.
  const estimated = tables.map((schema) => ({ schema, estimatedRows: 1e6 }))
  const decided = routes(pipeline, estimated, 3)
  const reader = await source.reader('now', signal)
  const registered: Registered[] = []
  for (const [i, schema] of tables.entries()) {
    const route = decided[i]
    if (route === undefined) throw new Error('no route')
    const table = { schema, route, plan: { generation: 0, ranges: await reader.ranges(schema, chunkRows, signal) } }
    registered.push(table)
    await store.put(`table/${tableName(schema.table)}`, table, 0, signal)
  }
  await log.open(topicsOf(pipeline, registered), signal)
  await sink.prepare(tables, 'before', undefined, signal)
  const held = registered.map(({ schema, route }) => {
    return { table: schema.table, partitions: partitionsOf(route), snapshot: origin, live: false }
  })
  await sink.setCopies(held, 0, signal)
  const first = await source.retain(tables, signal)
  const partitions = registered.flatMap(({ route }) => partitionsOf(route))
  const end = new AbortController()
  const broken = new AbortController()
  const all = AbortSignal.any([signal, broken.signal])
  const running: Promise<unknown>[] = []
  const run = (work: Promise<unknown>): void => {
    running.push(
      work.catch((error: unknown) => {
        if (!end.signal.aborted) broken.abort(error)
      }),
    )
  }
  let reported = false
  const report = (): void => {
    if (!broken.signal.aborted || reported) return
    reported = true
    throw broken.signal.reason
  }
  const trail = watermarkTrail()
  const own = (): ReturnType<typeof memoryLog> => memoryLog({ data: log.data })
  const truncated = new Map<string, Position>()
  const publisher = createPublisher({
    pipeline,
    epoch: (await readTail(log, pipeline, signal)).epoch + 1,
    route: (table) => registered.find(({ schema }) => tableName(schema.table) === tableName(table))?.route,
    partitions,
    ends: await log.ends(partitions, signal),
    clock: () => performance.now(),
    limits: { roundBytes: 1e6, batchBytes: 1e6 },
    onTruncate: (emptied, position) => emptied.forEach((table) => truncated.set(tableName(table), position)),
  })
  const stopping = AbortSignal.any([all, end.signal])
  run(capture(source, log, publisher, { after: origin, published: origin, unread: [] }, { signal: all }, end.signal))
  run(followWatermarks(log, pipeline, (record) => trail.add(record), stopping))
  const batchers: Batcher[] = []
  for (const rest of [0, 1]) {
    const lane = await sink.lane(signal)
    const lent = own()
    const schemas = schemaReader(lent, `${pipeline}.schemas`)
    const checkpoints = await lane.claim(
      partitions.filter((_, i) => i % 2 === rest),
      0,
      signal,
    )
    const batcher = createBatcher({ checkpoints, schemas, limits: { batchRows: 50, batchBytes: 1e6 } })
    batchers.push(batcher)
    run(applyLane(lent, lane, batcher, schemas, 10, end.signal, all))
  }
  const refresh = async (): Promise<void> => {
    const checkpoints = await sink.checkpoints(signal)
    for (const batcher of batchers) batcher.resume(checkpoints)
  }
  const stands: CopyParts['stands'] = async (partitions, position, signal) => {
    await source.emit(heartbeatPrefix, new Uint8Array(), signal)
    while (!trail.stands(partitions, await sink.checkpoints(signal), position)) {
      report()
      await sleep(2, undefined, { signal })
    }
  }
  return {
    database,
    source,
    sink,
    store,
    first,
    parts(step = () => {}) {
      const hooked = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
        step(`before ${name}`)
        const result = await work()
        step(`after ${name}`)
        return result
      }
      return {
        source: {
          ...source,
          snapshot: async (signal) => await hooked('snapshot', async () => source.snapshot(signal)),
        },
        sink: {
          ...sink,
          setCopies: async (copies, epoch, signal) =>
            await hooked('setCopies', async () => await sink.setCopies(copies, epoch, signal)),
          async lane(signal) {
            const lane = await sink.lane(signal)
            return {
              ...lane,
              load: async (schema, chunk, data, epoch, signal) =>
                await hooked('load', async () => await lane.load(schema, chunk, data, epoch, signal)),
            }
          },
        },
        leases: leases(store, 'test'),
        tables: async () =>
          (await registeredTables(store, signal)).map(({ schema, route, plan }) => {
            return { schema, partitions: partitionsOf(route), plan }
          }),
        startOver: async (schema) => await hooked('startOver', async () => await startOver(store, schema, signal)),
        parallel: 2,
        ttl,
        keepHeld: false,
        stands: async (...given) => await hooked('stands', async () => await stands(...given)),
        emptied: async ({ table }, after, signal) => {
          const { position } = await source.health(signal)
          await source.emit(heartbeatPrefix, new Uint8Array(), signal)
          while (comparePositions(trail.latest?.position ?? origin, position) < 0) {
            report()
            await sleep(2, undefined, { signal })
          }
          const at = truncated.get(tableName(table))
          return at !== undefined && comparePositions(at, after) > 0 ? at : undefined
        },
        complete: async () => await hooked('complete', async () => {}),
        moved: async () => await hooked('moved', refresh),
        seen: () => {},
      }
    },
    async settled(signal) {
      await refresh() // as a pipeline does about once a second
      await stands(partitions, (await source.health(signal)).position, signal)
      report()
    },
    contents: () => ({
      source: tables.map(({ table }) => database.rows(table).map(String).toSorted()),
      target: tables.map(({ table }) => sink.rows(table).map(String).toSorted()),
    }),
    async [Symbol.asyncDispose]() {
      end.abort()
      await Promise.all(running)
      report()
    },
  }
}

/** One change after the other, of every kind, over rows that are there and rows that come and go. */
export function writer(database: MemoryDatabase): () => Position {
  let n = 0
  return () => {
    n++
    const has = (table: TableSchema, key: string): boolean => database.rows(table.table).some(([id]) => id === key)
    const old = `${(n * 7) % 25}`
    switch (n % 6) {
      case 0:
        if (has(orders, old)) return database.commit({ kind: 'delete', table: orders, key: [old] })
        return database.commit({ kind: 'insert', table: orders, row: [old, 'again', null, `${n}`] })
      case 1:
        if (has(orders, old))
          return database.commit({ kind: 'update', table: orders, key: [old], row: [old, undefined, `b${n}`, `${n}`] })
        return database.commit({ kind: 'insert', table: orders, row: [old, 'again', null, `${n}`] })
      case 2: {
        const item = `${n % 12}`
        if (!has(items, item)) return database.commit({ kind: 'insert', table: items, row: [item, 'back', null, '2'] })
        // A key change with a cell that is not sent: a move.
        const row = [`${1000 + n}`, 'moved', undefined, `${n}`]
        return database.commit({ kind: 'update', table: items, key: [item], row })
      }
      case 3:
        return database.commit({ kind: 'insert', table: notes, row: [`n${n}`, 'note', null, null] })
      case 4:
        return database.commit(
          { kind: 'insert', table: orders, row: [`${500 + n}`, 'new', 'x', '0'] },
          { kind: 'insert', table: items, row: [`${500 + n}`, 'new', 'x', '0'] },
        )
      default:
        return database.commit({ kind: 'insert', table: notes, row: ['same', 'note', null, null] })
    }
  }
}
