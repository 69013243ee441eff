import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Lane, Sink, TableReader } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import {
  compareMarks,
  comparePositions,
  partitionName,
  tableName,
  type Advance,
  type Barrier,
  type Checkpoint,
  type Chunk,
  type Epoch,
  type Position,
  type TableCopy,
  type TableId,
  type TableSchema,
  type TopicPartition,
  type Counter,
  type Start,
} from '../../src/model.ts'
import {
  Op,
  readImage,
  rowsOf,
  Tag,
  type Cell,
  type ChangeBatch,
  type LaneBatch,
  type Rows,
  type ChunkData,
} from '../../src/rows.ts'

type Call = 'apply' | 'arrive' | 'load' | 'claim' | 'setCopies' | 'leave'
/** `reject`: fails before anything is written. `failAfterWrite`: everything is written, the answer is lost. `hold`: waits before it writes.
 *  `holdAnswer`: writes, then waits. */
type Fault =
  | { readonly kind: 'reject'; readonly error?: Error }
  | { readonly kind: 'failAfterWrite'; readonly error?: Error }
  | { readonly kind: 'hold'; readonly until: Promise<unknown> }
  | { readonly kind: 'holdAnswer'; readonly until: Promise<unknown> }
  | { readonly kind: 'slow'; readonly ms: number }

/** A target in memory with the guarantees of a real one, and every way it can hurt. */
export interface MemorySink extends Sink {
  /** Rows of a table in key order (in order of arrival without a key), each as its cells' text; null is null. */
  rows(table: TableId): (string | null)[][]
  /** The next `times` calls of this kind meet the fault; fewer than 0: no further one meets any. */
  inject(call: Call, fault: Fault, times?: number): void
  /** Rows that the target refuses: ROW_REJECTED from the ordered replay, as a constraint would. */
  refuse(poison: ((table: TableId, row: readonly Cell[]) => boolean) | undefined): void
  /** How often each barrier's effect was performed, by `position/seq`. */
  readonly effects: ReadonlyMap<string, number>
  /** Batches committed, and how many rows were in their groups. */
  readonly committed: { batches: number; rows: number }
  readonly counters: ReadonlyMap<string, bigint>
}

type Table = { schema: TableSchema; keyed: Map<string, readonly Cell[]>; loose: (readonly Cell[])[] }
type Row = Checkpoint & { readonly generation: number }
type Copy = TableCopy & {
  readonly epoch: Epoch
  readonly chunks: Map<string, { epoch: Epoch; done: boolean; rows: number }>
}

export function memorySink(): MemorySink {
  const tables = new Map<string, Table>()
  const checkpoints = new Map<string, Row>()
  const copies = new Map<string, Copy>()
  const barriers = new Map<string, { arrived: Set<string>; done: boolean }>()
  const effects = new Map<string, number>()
  const counters = new Map<string, bigint>()
  const committed = { batches: 0, rows: 0 }
  const faults = new Map<Call, Fault[]>()
  let poison: ((table: TableId, row: readonly Cell[]) => boolean) | undefined

  function tableOf(schema: TableSchema): Table {
    const name = tableName(schema.table)
    const known = tables.get(name)
    if (known) {
      known.schema = schema
      return known
    }
    const made: Table = { schema, keyed: new Map(), loose: [] }
    tables.set(name, made)
    return made
  }
  const unreachable = (): Failure => new Failure('SERVER_UNREACHABLE', { observed: 'injected' })

  /** `write` is synchronous: what it does is seen whole or, if it throws, not at all. */
  async function faulty<T>(call: Call, signal: AbortSignal, write: () => T): Promise<T> {
    await Promise.resolve()
    signal.throwIfAborted()
    const fault = faults.get(call)?.shift()
    if (fault?.kind === 'reject') throw fault.error ?? unreachable()
    if (fault?.kind === 'hold') await abortable(fault.until, signal)
    if (fault?.kind === 'slow') await sleep(fault.ms, undefined, { signal })
    const before = new Map(
      [...tables].map(([name, { schema, keyed, loose }]) => [
        name,
        { schema, keyed: new Map(keyed), loose: [...loose] },
      ]),
    )
    let result: T
    try {
      result = write()
    } catch (error) {
      tables.clear()
      for (const [name, table] of before) tables.set(name, table)
      throw error
    }
    if (fault?.kind === 'failAfterWrite') throw fault.error ?? unreachable()
    if (fault?.kind === 'holdAnswer') await abortable(fault.until, signal)
    return result
  }

  function isExpected({ from, to }: Advance): boolean {
    const row = checkpoints.get(partitionName(to))
    return row?.claim === to.claim && row.offset === from && row.hold === to.hold && row.loose === to.loose
  }
  function move({ to }: Advance): void {
    const row = checkpoints.get(partitionName(to))
    if (row)
      checkpoints.set(partitionName(to), { ...row, offset: to.offset, mark: to.mark, captureEpoch: to.captureEpoch })
  }

  function applyGroups(batch: LaneBatch): void {
    for (const kind of ['delete', 'update', 'upsert'] as const) {
      for (const group of batch.groups) {
        if (group.kind !== kind) continue
        const table = tableOf(group.schema)
        for (const row of imagesOf(group.rows)) {
          const key = keyText(group.schema, row)
          if (kind === 'delete') table.keyed.delete(key)
          else if (kind === 'upsert') put(table, key, complete(group.schema, row))
          else update(table, key, row, group.mayMiss)
        }
        committed.rows += group.rows.count
      }
    }
    if (batch.inOrder) applyOrdered(batch.inOrder, batch.mayMiss)
  }

  function put(table: Table, key: string, row: readonly Cell[]): void {
    if (poison?.(table.schema.table, row)) throw new Rejection()
    table.keyed.set(key, row)
  }

  function update(table: Table, key: string, row: readonly Cell[], mayMiss: boolean): void {
    const old = table.keyed.get(key)
    if (old) put(table, key, overlay(old, row))
    else if (!mayMiss) throw new Failure('TARGET_DRIFTED', { object: tableName(table.schema.table) })
  }

  function applyOrdered(batch: ChangeBatch, mayMiss: boolean): void {
    for (let i = 0; i < batch.count; i++) {
      const schema = batch.schemas[batch.table[i] ?? -1]
      if (!schema) throw new RangeError(`change ${i} of no table`)
      try {
        applyChange(
          tableOf(schema),
          imageOf(batch.images, 2 * i),
          imageOf(batch.images, 2 * i + 1),
          batch.op[i] ?? -1,
          mayMiss,
        )
      } catch (error) {
        if (!(error instanceof Rejection)) throw error
        const at = batch.transactions.findLast(({ first }) => first <= i)
        const mark = at && `${at.position} ${at.firstSeq + 4 * (i - at.first)}`
        throw new Failure('ROW_REJECTED', { object: tableName(schema.table), observed: `change ${mark}: refused` })
      }
    }
  }

  function applyChange(table: Table, old: readonly Cell[], next: readonly Cell[], op: number, mayMiss: boolean): void {
    const { schema } = table
    const drifted = (): Failure => new Failure('TARGET_DRIFTED', { object: tableName(schema.table) })
    if (schema.key.length > 0) {
      if (op === Op.delete) table.keyed.delete(keyText(schema, old))
      else if (next.includes(undefined)) update(table, keyText(schema, next), next, mayMiss)
      else put(table, keyText(schema, next), next)
      return
    }
    if (op === Op.insert || op === Op.read) {
      if (poison?.(schema.table, next)) throw new Rejection()
      table.loose.push(next)
      return
    }
    const at = table.loose.findIndex((row) => rowText(row) === rowText(overlay(row, old)))
    if (at < 0) {
      if (!mayMiss) throw drifted()
    } else if (op === Op.delete) table.loose.splice(at, 1)
    else table.loose.splice(at, 1, overlay(table.loose[at] ?? [], next))
  }

  function perform({ effect, mark }: Barrier, mayMiss: boolean): void {
    const id = `${mark.position}/${mark.seq}`
    effects.set(id, (effects.get(id) ?? 0) + 1)
    switch (effect.kind) {
      case 'truncate':
        for (const table of effect.tables) {
          if (!copies.has(tableName(table))) continue
          tables.get(tableName(table))?.keyed.clear()
          tables.get(tableName(table))?.loose.splice(0)
        }
        return
      case 'rekey': {
        const { schema } = effect
        const table = tableOf(schema)
        const next = imageOf(rowAlone(effect.newImage), 0)
        const [oldKey, newKey] = [keyText(schema, imageOf(rowAlone(effect.oldKey), 0)), keyText(schema, next)]
        const base = table.keyed.get(newKey) ?? table.keyed.get(oldKey)
        if (base) {
          if (oldKey !== newKey) table.keyed.delete(oldKey)
          put(table, newKey, overlay(base, next))
        } else if (!mayMiss) throw new Failure('TARGET_DRIFTED', { object: tableName(schema.table) })
        return
      }
      case 'schema':
        tableOf(effect.schema)
        return
      case 'repartition':
        for (let partition = 0; partition < effect.partitions; partition++) ensure({ topic: effect.topic, partition })
        return
      default:
        effect satisfies never
    }
  }

  function ensure({ topic, partition }: TopicPartition, start?: Start): Row {
    const name = partitionName({ topic, partition })
    const row = checkpoints.get(name) ?? {
      topic,
      partition,
      offset: start?.ends.find((end) => partitionName(end) === name)?.offset ?? 0,
      mark: start ? { position: start.position, seq: Number.MAX_SAFE_INTEGER } : { position: '' as Position, seq: 0 },
      captureEpoch: start?.epoch ?? 0,
      claim: '',
      hold: '' as Position,
      loose: '' as Position,
      generation: -1,
    }
    checkpoints.set(name, row)
    return row
  }

  function lane(): Lane {
    return {
      claim: async (partitions, generation, signal) =>
        await faulty('claim', signal, () => {
          const claim = randomUUID()
          const rows = partitions.map((at) => ensure(at))
          if (rows.some((row) => row.generation > generation))
            throw new Failure('FENCED', { observed: `generation ${generation}` })
          for (const row of rows) checkpoints.set(partitionName(row), { ...row, claim, generation })
          return rows.map((row) => checkpointOf({ ...row, claim, generation }))
        }),
      apply: async (batch, advances, signal) =>
        await faulty('apply', signal, () => {
          const lost = advances.filter((advance) => !isExpected(advance))
          if (lost.length > 0) return lost.map(({ to: { topic, partition } }) => ({ topic, partition }))
          const before = new Map(
            [...tables].map(([name, { schema, keyed, loose }]) => [
              name,
              { schema, keyed: new Map(keyed), loose: [...loose] },
            ]),
          )
          try {
            applyGroups(batch)
          } catch (error) {
            if (!(error instanceof Rejection) && !(error instanceof Failure && error.code === 'TARGET_DRIFTED'))
              throw error
            tables.clear()
            for (const [name, table] of before) tables.set(name, table)
            applyOrdered(batch.ordered(), batch.mayMiss)
          }
          committed.batches++
          for (const advance of advances) move(advance)
          return []
        }),
      arrive: async (barrier, advance, signal) =>
        await faulty('arrive', signal, () => {
          const { to, from } = advance
          if (!isExpected(advance)) {
            const row = checkpoints.get(partitionName(to))
            const passed = row?.claim === to.claim && row.offset === to.offset && from < to.offset
            return passed && comparePositions(row.mark.position, barrier.mark.position) >= 0 ? 'done' : 'lost'
          }
          const id = `${barrier.mark.position}/${barrier.mark.seq}`
          const state = barriers.get(id) ?? { arrived: new Set<string>(), done: false }
          barriers.set(id, state)
          state.arrived.add(partitionName(to))
          if (!state.done) {
            const waits = (at: TopicPartition): boolean => {
              const row = checkpoints.get(partitionName(at))
              return row !== undefined && compareMarks(row.mark, barrier.mark) < 0
            }
            if (barrier.partitions.some((at) => !state.arrived.has(partitionName(at)) && waits(at))) return 'waiting'
            perform(barrier, to.hold !== undefined || comparePositions(barrier.mark.position, to.loose) <= 0)
            state.done = true
          }
          move(advance)
          return 'done'
        }),
      async load(schema, chunk, data, epoch, signal) {
        const rows = await collect(data)
        return await faulty('load', signal, () => loadRows(schema, chunk, rows, epoch))
      },
      async repair(at, schema, read, signal) {
        signal.throwIfAborted()
        const row = checkpoints.get(partitionName(at))
        if (!row) throw new Failure('BUG', { object: partitionName(at), observed: 'no checkpoint' })
        const { keys, rows } = await read(checkpointOf(row))
        const table = tableOf(schema)
        imagesOf(keys).forEach((key, i) => {
          const image = imageOf(rows, i)
          if (image.length === 0) table.keyed.delete(keyText(schema, key))
          else put(table, keyText(schema, key), image)
        })
      },
      async [Symbol.asyncDispose]() {},
    }
  }

  function loadRows(
    schema: TableSchema,
    chunk: Chunk,
    rows: readonly (readonly Cell[])[],
    epoch: Epoch,
  ): number | undefined {
    const copy = copies.get(tableName(schema.table))
    const known = copy?.chunks.get(chunk.id)
    if (known?.done) return undefined
    if (known && known.epoch > epoch) throw new Failure('FENCED', { object: chunk.id })
    if (!copy || copy.live || copy.snapshot !== chunk.snapshot) throw new Failure('SNAPSHOT_LOST', { object: chunk.id })
    const table = tableOf(schema)
    if (chunk.replace) {
      table.loose.splice(0)
      for (const [key, row] of table.keyed) if (isInRange(schema, row, chunk)) table.keyed.delete(key)
    }
    for (const row of rows) {
      if (schema.key.length === 0) table.loose.push(row)
      else table.keyed.set(keyText(schema, row), row)
    }
    copy.chunks.set(chunk.id, { epoch, done: true, rows: rows.length })
    return rows.length
  }

  function reader(): TableReader {
    return {
      ranges: async (schema) => [{ table: schema.table, estimatedRows: allRows(schema.table).length }],
      async *rows(schema, range) {
        yield rowsOf(allRows(schema.table).filter((row) => isInRange(schema, row, range)))
      },
      async lookup(schema, keys) {
        const table = tableOf(schema)
        const found = imagesOf(keys).map((key) => table.keyed.get(keyText(schema, key)))
        return { ...rowsOf(found.map((row) => row ?? [])), versions: found.map((row) => (row ? rowText(row) : '')) }
      },
      split: async (_, range) => [range],
      copies: async (schema, rows) =>
        imagesOf(rows).map((wanted) =>
          allRows(schema.table).flatMap((row, i) => (rowText(row) === rowText(wanted) ? `${i}` : [])),
        ),
      async [Symbol.asyncDispose]() {},
    }
  }
  function allRows(table: TableId): (readonly Cell[])[] {
    const found = tables.get(tableName(table))
    if (!found) return []
    return [...[...found.keyed].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, row]) => row), ...found.loose]
  }

  return {
    effects,
    committed,
    counters,
    rows: (table) =>
      allRows(table).map((row) => row.map((cell) => printCell(tables.get(tableName(table))?.schema, row, cell))),
    inject(call, fault, times = 1) {
      const queue = times < 0 ? [] : (faults.get(call) ?? [])
      for (let i = 0; i < times; i++) queue.push(fault)
      faults.set(call, queue)
    },
    refuse(test) {
      poison = test
    },
    check: async () => [],
    present: async (schemas) => schemas.map(({ table }) => table).filter((table) => tables.has(tableName(table))),
    async prepare(schemas) {
      for (const schema of schemas) tableOf(schema)
    },
    leave: async (all, epoch, signal) =>
      await faulty('leave', signal, () => {
        const fenced = all.find((table) => (copies.get(tableName(table))?.epoch ?? 0) > epoch)
        if (fenced) throw new Failure('FENCED', { object: tableName(fenced) })
        for (const name of all.map(tableName)) {
          for (const at of copies.get(name)?.partitions ?? []) checkpoints.delete(partitionName(at))
          copies.delete(name)
        }
      }),
    setCopies: async (all, epoch, signal, start) =>
      await faulty('setCopies', signal, () => {
        const fenced = all.find(({ table }) => (copies.get(tableName(table))?.epoch ?? 0) > epoch)
        if (fenced) throw new Failure('FENCED', { object: tableName(fenced.table) })
        for (const copy of all) {
          const name = tableName(copy.table)
          const known = copies.get(name)
          const chunks = known && !known.live && !copy.live ? known.chunks : new Map()
          copies.set(name, { ...copy, epoch, chunks })
          for (const partition of copy.partitions) {
            const row = ensure(partition, start)
            const loose = comparePositions(row.loose, copy.snapshot) < 0 ? copy.snapshot : row.loose
            const moved = { ...row, loose, hold: copy.snapshot }
            if (copy.live) Reflect.deleteProperty(moved, 'hold')
            checkpoints.set(partitionName(row), moved)
          }
        }
      }),
    copies: async () =>
      [...copies.values()].map(({ table, partitions, snapshot, live, rows, chunks }) => ({
        table,
        partitions,
        snapshot,
        live,
        ...(rows === undefined ? {} : { rows }),
        done: [...chunks].filter(([, { done }]) => done).map(([id]) => id),
        loaded: [...chunks.values()].filter(({ done }) => done).map(({ rows }) => rows),
      })),
    checkpoints: async () => [...checkpoints.values()].map(checkpointOf),
    lane: async () => lane(),
    async advance(all: readonly Counter[]) {
      for (const { name, value } of all) counters.set(name, value)
    },
    reader: async () => reader(),
    async [Symbol.asyncDispose]() {},
  }
}

class Rejection extends Error {}

function checkpointOf(row: Row): Checkpoint {
  const { topic, partition, offset, mark, captureEpoch, claim, hold, loose } = row
  return { topic, partition, offset, mark, captureEpoch, claim, loose, ...(hold === undefined ? {} : { hold }) }
}

async function abortable(until: Promise<unknown>, signal: AbortSignal): Promise<void> {
  await Promise.race([
    until,
    new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true })),
  ])
}

function rowAlone(image: Uint8Array): Rows {
  return { bytes: image, starts: Int32Array.of(0, image.length), count: 1 }
}
/** Copied: the bytes are lent. */
function imageOf(rows: Rows, i: number): readonly Cell[] {
  return readImage(rows.bytes, rows.starts[i] ?? 0, rows.starts[i + 1] ?? 0).map((cell) =>
    cell ? { tag: cell.tag, bytes: Uint8Array.from(cell.bytes) } : cell,
  )
}
function imagesOf(rows: Rows): (readonly Cell[])[] {
  return Array.from({ length: rows.count }, (_, i) => imageOf(rows, i))
}
async function collect(data: ChunkData): Promise<(readonly Cell[])[]> {
  if (data.kind === 'frames') throw new Failure('UNSUPPORTED', { observed: `frames of ${data.format}` })
  const rows: (readonly Cell[])[] = []
  for await (const batch of data.batches) rows.push(...imagesOf(batch))
  return rows
}

/** An image may hold the key's cells alone, in its order. */
function keyText(schema: TableSchema, row: readonly Cell[]): string {
  const cells = row.length === schema.columns.length ? schema.key.map((c) => row[c]) : row
  return rowText(cells)
}
/** Native and text cells of equal bytes are different rows: a test keeps to one form. */
function rowText(row: readonly Cell[]): string {
  return row
    .map((cell) => (cell ? Buffer.from(cell.bytes).toString('hex') : cell === null ? 'null' : 'absent'))
    .join('/')
}
function overlay(old: readonly Cell[], next: readonly Cell[]): readonly Cell[] {
  return old.map((cell, c) => (next[c] === undefined ? cell : next[c]))
}
function complete(schema: TableSchema, row: readonly Cell[]): readonly Cell[] {
  if (row.includes(undefined)) throw new RangeError(`an upsert of ${tableName(schema.table)} with an absent cell`)
  return row
}
function printCell(schema: TableSchema | undefined, row: readonly Cell[], cell: Cell): string | null {
  if (!cell) return null
  const form = schema?.columns[row.indexOf(cell)]?.form ?? 'text'
  const bytes = Buffer.from(cell.bytes)
  if (cell.tag === Tag.text || form === 'text') return bytes.toString()
  if (form === 'bool') return bytes[0] === 0 ? 'f' : 't'
  if (form === 'int16') return String(bytes.readInt16BE(0))
  if (form === 'int32') return String(bytes.readInt32BE(0))
  if (form === 'int64') return String(bytes.readBigInt64BE(0))
  if (form === 'float32') return String(bytes.readFloatBE(0))
  if (form === 'float64') return String(bytes.readDoubleBE(0))
  return `\\x${bytes.toString('hex')}`
}
/** Bounds are JSON arrays of the key's texts, compared as text, integers as numbers. */
function isInRange(
  schema: TableSchema,
  row: readonly Cell[],
  { from, to }: { readonly from?: string; readonly to?: string },
): boolean {
  const values = schema.key.map((c) => printCell(schema, row, row[c]))
  return (from === undefined || compareKeys(values, from) >= 0) && (to === undefined || compareKeys(values, to) < 0)
}
export function compareKeys(values: readonly (string | null)[], bound: string): number {
  const bounds: unknown = JSON.parse(bound)
  const parts = Array.isArray(bounds) ? bounds.map(String) : [String(bounds)]
  for (const [i, part] of parts.entries()) {
    const value = values[i] ?? ''
    if (value === part) continue
    const numbers = /^-?\d+$/.test(value) && /^-?\d+$/.test(part)
    return (numbers ? BigInt(value) < BigInt(part) : value < part) ? -1 : 1
  }
  return 0
}
