import { setImmediate as turn } from 'node:timers/promises'
import type { ChangeStream, Snapshot, Source, SourceEvent, TableReader } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import { comparePositions, origin, tableName, type Position, type TableId, type TableSchema } from '../../src/model.ts'
import { compareKeys } from './memory-sink.ts'
import { Op, Tag, rowsOf, type Cell, type Rows, type Transaction } from '../../src/rows.ts'

/** A row as text cells; null is NULL, undefined absent. */
type MemoryRow = readonly (string | null | undefined)[]
type MemoryChange =
  | { readonly kind: 'insert'; readonly table: TableSchema; readonly row: MemoryRow }
  /** `row`: the new one, absent cells unchanged. `key`: of the row before, in the order of the schema's key. */
  | { readonly kind: 'update'; readonly table: TableSchema; readonly key: readonly string[]; readonly row: MemoryRow }
  | { readonly kind: 'delete'; readonly table: TableSchema; readonly key: readonly string[] }
  | { readonly kind: 'truncate'; readonly tables: readonly TableSchema[] }
/** What goes wrong at the next calls; each is used up by one call. */
type MemoryFaults = { changes?: Error; pull?: Error; emit?: Error; snapshot?: Error }

/** A source in this process: one database, any number of handles on it. Positions are 16 hex digits, as far apart as commits are. */
export interface MemoryDatabase {
  readonly faults: MemoryFaults
  /** Rows by table, in the order of their keys' text. */
  rows(table: TableId): readonly MemoryRow[]
  /** One transaction. Returns its position. */
  commit(...changes: readonly MemoryChange[]): Position
  /** Highest position acknowledged by any stream. */
  readonly acknowledged: Position
  /** Ends every open stream with this error, as a lost connection does. */
  cut(error: Error): void
  open(): Source
}

type Entry =
  | {
      readonly kind: 'commit'
      readonly position: Position
      readonly at: number
      readonly changes: readonly MemoryChange[]
      readonly olds: readonly (MemoryRow | undefined)[]
    }
  | {
      readonly kind: 'message'
      readonly position: Position
      readonly at: number
      readonly prefix: string
      readonly content: Uint8Array
    }
type Content = ReadonlyMap<string, ReadonlyMap<string, MemoryRow>>

/** `clock`: what commits are stamped with, ms since 1970. */
export function memorySource(tables: readonly TableSchema[], clock: () => number = Date.now): MemoryDatabase {
  const content = new Map<string, Map<string, MemoryRow>>(tables.map(({ table }) => [tableName(table), new Map()]))
  const log: Entry[] = []
  const snapshots = new Map<string, { readonly content: Content; readonly rewrites: ReadonlyMap<string, number> }>()
  /** How often each table was truncated: a copy under an older snapshot must not go on (H4). */
  const rewrites = new Map<string, number>()
  const waiting = new Set<() => void>()
  const faults: MemoryFaults = {}
  let place = 0
  let acknowledged = origin
  let retained = false
  /** From which place on the changes of a table are kept. */
  const kept = new Map<string, Position>()
  let holder = 0
  let cutBy: { readonly error: Error; readonly upTo: number } | undefined

  const here = (): Position => place.toString(16).padStart(16, '0') as Position
  const advance = (): Position => {
    place += 16
    return here()
  }
  const wake = (): void => {
    for (const each of waiting) each()
  }
  function take(name: keyof MemoryFaults): void {
    const error = faults[name]
    delete faults[name]
    if (error) throw error
  }
  function rowsOfTable(table: TableId): Map<string, MemoryRow> {
    const rows = content.get(tableName(table))
    if (!rows) throw new Error(`no table ${tableName(table)}`)
    return rows
  }
  function perform(change: MemoryChange): MemoryRow | undefined {
    if (change.kind === 'truncate') {
      for (const { table } of change.tables) {
        rowsOfTable(table).clear()
        rewrites.set(tableName(table), (rewrites.get(tableName(table)) ?? 0) + 1)
      }
      return undefined
    }
    const rows = rowsOfTable(change.table.table)
    if (change.kind === 'insert') {
      const key = keyOf(change.table, change.row, rows.size)
      if (rows.has(key)) throw new Error(`row ${key} is there already`)
      rows.set(key, change.row)
      return undefined
    }
    const key = JSON.stringify(change.key)
    const old = rows.get(key)
    if (!old) throw new Error(`no row ${key} in ${tableName(change.table.table)}`)
    rows.delete(key)
    if (change.kind === 'update') {
      const whole = change.row.map((cell, i) => (cell === undefined ? old[i] : cell))
      rows.set(keyOf(change.table, whole, rows.size), whole)
    }
    return old
  }
  function view(): Content {
    return new Map([...content].map(([name, rows]) => [name, new Map(rows)]))
  }
  function newSnapshot(): Snapshot {
    const position = advance()
    const id = `memory-${position}`
    snapshots.set(id, { content: view(), rewrites: new Map(rewrites) })
    return { id, position, exact: true, [Symbol.asyncDispose]: async () => void snapshots.delete(id) }
  }

  function openStream(after: Position, signal: AbortSignal): ChangeStream {
    const mine = ++holder
    let next = log.findIndex((entry) => comparePositions(entry.position, after) > 0)
    if (next < 0) next = log.length
    let lent: SourceEvent[] = []
    let ready: SourceEvent[] = []
    let closed = false
    wake()
    const pull = async (): Promise<IteratorResult<SourceEvent>> => {
      for (const event of lent) poison(event)
      lent = []
      for (;;) {
        signal.throwIfAborted()
        if (closed) return { value: undefined, done: true }
        take('pull')
        if (cutBy && cutBy.upTo >= mine) throw cutBy.error
        if (mine !== holder) throw new Failure('SERVER_UNREACHABLE', { object: 'stream', observed: 'taken over' })
        const event = ready.shift()
        if (event) {
          lent = [event]
          return { value: event, done: false }
        }
        if (next < log.length) {
          ready = toEvents(log.slice(next), kept)
          next = log.length
          continue
        }
        await new Promise<void>((resolve) => {
          const done = (): void => {
            waiting.delete(done)
            signal.removeEventListener('abort', done)
            resolve()
          }
          waiting.add(done)
          signal.addEventListener('abort', done)
        })
        await turn()
      }
    }
    const dispose = async (): Promise<void> => {
      closed = true
      wake()
    }
    return {
      get waiting() {
        return ready.length > 0 || next < log.length
      },
      ack(position) {
        if (mine === holder && comparePositions(position, acknowledged) > 0) acknowledged = position
      },
      [Symbol.asyncIterator]: () => ({
        next: pull,
        return: async () => {
          await dispose()
          return { value: undefined, done: true }
        },
      }),
      [Symbol.asyncDispose]: dispose,
    }
  }

  function reader(at: string): TableReader {
    const seen = (table: TableId): ReadonlyMap<string, MemoryRow> => {
      if (at === 'now') return rowsOfTable(table)
      const snapshot = snapshots.get(at)
      if (!snapshot) throw new Failure('SNAPSHOT_LOST', { object: at })
      const name = tableName(table)
      if (snapshot.rewrites.get(name) !== rewrites.get(name)) throw new Failure('TABLE_REWRITTEN', { object: name })
      return snapshot.content.get(name) ?? new Map()
    }
    const keyText = (schema: TableSchema, row: MemoryRow): (string | null)[] => schema.key.map((c) => row[c] ?? null)
    return {
      async ranges(schema, rows) {
        const { table } = schema
        const all = seen(table)
        const sorted = [...all.values()]
          .map((row) => keyText(schema, row))
          .sort((a, b) => compareKeys(a, JSON.stringify(b)))
        const cuts = schema.key.length === 0 ? [] : sorted.filter((_, i) => i > 0 && i % rows === 0)
        const bounds = [undefined, ...cuts.map((key) => JSON.stringify(key)), undefined]
        return bounds.slice(1).map((to, i) => {
          const from = bounds[i]
          const estimatedRows = Math.min(rows, all.size - i * rows)
          return { table, estimatedRows, ...(from !== undefined && { from }), ...(to !== undefined && { to }) }
        })
      },
      async *rows(schema, { from, to }) {
        const all = [...seen(schema.table).values()].filter((row) => {
          const key = keyText(schema, row)
          return (from === undefined || compareKeys(key, from) >= 0) && (to === undefined || compareKeys(key, to) < 0)
        })
        for (let i = 0; i < Math.max(1, all.length); i += 1000) {
          await turn()
          seen(schema.table)
          yield rowsOf(all.slice(i, i + 1000).map(cells))
        }
      },
      async lookup(schema, keys) {
        const rows = seen(schema.table)
        const found = imagesOf(keys).map((key) =>
          rows.get(JSON.stringify(schema.key.map((column) => key[column] ?? key[0]))),
        )
        return {
          ...rowsOf(found.map((row) => (row ? cells(row) : []))),
          versions: found.map((row) => (row ? JSON.stringify(row) : '')),
        }
      },
      split: async (_, range) => [range],
      copies: async (schema, rows) =>
        imagesOf(rows).map((wanted) =>
          [...seen(schema.table)].flatMap(([version, row]) =>
            JSON.stringify(row) === JSON.stringify(wanted) ? version : [],
          ),
        ),
      [Symbol.asyncDispose]: async () => {},
    }
  }

  return {
    faults,
    rows: (table) => [...rowsOfTable(table)].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, row]) => row),
    commit(...changes) {
      const before = view()
      try {
        const olds = changes.map(perform)
        const position = advance()
        log.push({ kind: 'commit', position, at: clock(), changes, olds })
        wake()
        return position
      } catch (error) {
        for (const [name, rows] of before) content.set(name, new Map(rows))
        throw error
      }
    },
    get acknowledged() {
      return acknowledged
    },
    cut(error) {
      cutBy = { error, upTo: holder }
      wake()
    },
    open: () => ({
      check: async () => [],
      tables: async (filter) => tables.filter(({ table }) => filter(table)),
      async retain(named) {
        const names = new Set(named.map(({ table }) => tableName(table)))
        for (const name of kept.keys()) if (!names.has(name)) kept.delete(name)
        for (const name of names) if (!kept.has(name)) kept.set(name, retained ? here() : origin)
        if (retained) return undefined
        retained = true
        log.length = 0
        return newSnapshot()
      },
      async snapshot() {
        take('snapshot')
        return newSnapshot()
      },
      reader: async (at) => reader(at),
      async changes(after, signal) {
        signal.throwIfAborted()
        take('changes')
        if (!retained) throw new Failure('SLOT_LOST', { object: 'memory', observed: 'nothing was retained' })
        if (after !== origin && comparePositions(acknowledged, after) > 0) {
          throw new Failure('SOURCE_DIVERGED', { object: 'memory', observed: `acknowledged up to ${acknowledged}` })
        }
        return openStream(after, signal)
      },
      async emit(prefix, content, signal) {
        signal.throwIfAborted()
        take('emit')
        log.push({ kind: 'message', position: advance(), at: clock(), prefix, content: Uint8Array.from(content) })
        wake()
      },
      health: async () => ({
        position: here(),
        retainedBytes: 16 * log.length,
      }),
      visible: async () => here(),
      async release() {
        retained = false
        kept.clear()
      },
      [Symbol.asyncDispose]: async () => {},
    }),
  }
}

function keyOf(schema: TableSchema, row: MemoryRow, number: number): string {
  return schema.key.length === 0
    ? `row ${number} ${Math.random()}`
    : JSON.stringify(schema.key.map((column) => row[column]))
}

function cells(row: MemoryRow): readonly Cell[] {
  return row.map((text) => (text === null || text === undefined ? text : { tag: Tag.text, bytes: Buffer.from(text) }))
}

function imagesOf({ bytes, starts, count }: Rows): readonly (readonly (string | null)[])[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return Array.from({ length: count }, (_, i) => {
    let at = (starts[i] ?? 0) + 2
    return Array.from({ length: view.getUint16(at - 2) }, () => {
      const tag = bytes[at++]
      if (tag !== Tag.text && tag !== Tag.native) return null
      const from = at + 4
      at = from + view.getInt32(at)
      return Buffer.from(bytes.subarray(from, at)).toString()
    })
  })
}

/** Old images hold the key's cells alone, others null, unless the schema says `row`. */
function oldImage(schema: TableSchema, old: MemoryRow): MemoryRow {
  return schema.before === 'row' ? old : old.map((cell, i) => (schema.key.includes(i) ? cell : null))
}

/** As a source sends them: everything that has arrived as one batch, cut where something is no row. */
function toEvents(entries: readonly Entry[], kept: ReadonlyMap<string, Position>): SourceEvent[] {
  const events: SourceEvent[] = []
  let images: (readonly Cell[])[] = []
  let ops: number[] = []
  let places: number[] = []
  let schemas: TableSchema[] = []
  let transactions: Transaction[] = []
  const close = (): void => {
    if (ops.length > 0) {
      const made = { op: Uint8Array.from(ops), table: Uint16Array.from(places), schemas, transactions }
      events.push({ kind: 'changes', count: ops.length, images: rowsOf(images), ...made })
    }
    images = []
    ops = []
    places = []
    schemas = []
    transactions = []
  }
  for (const entry of entries) {
    const { position, at: committedAt } = entry
    if (entry.kind === 'message') {
      close()
      events.push({
        kind: 'message',
        position,
        committedAt,
        prefix: entry.prefix,
        content: Uint8Array.from(entry.content),
      })
      continue
    }
    let entered = false
    const isKept = ({ table }: TableSchema): boolean => {
      const since = kept.get(tableName(table))
      return since !== undefined && comparePositions(position, since) > 0
    }
    entry.changes.forEach((change, number) => {
      if (!(change.kind === 'truncate' ? change.tables : [change.table]).some(isKept)) {
        entered = false
        return
      }
      if (change.kind === 'truncate') {
        close()
        entered = false
        const named = change.tables.filter(isKept).map(({ table }) => table)
        const effect = { kind: 'truncate', tables: named, cascade: false, restartCounters: false } as const
        events.push({ kind: 'effect', effect, mark: { position, seq: 4 * number }, committedAt })
        return
      }
      if (!entered) {
        const id = String(Number.parseInt(position, 16))
        transactions.push({ position, committedAt, id, first: ops.length, firstSeq: 4 * number })
        entered = true
      }
      const { table } = change
      const old = entry.olds[number]
      const moved =
        change.kind === 'update' &&
        old &&
        table.key.some((c) => change.row[c] !== undefined && change.row[c] !== old[c])
      const sendsOld = change.kind === 'delete' || moved || (change.kind === 'update' && table.before === 'row')
      images.push(sendsOld && old ? cells(oldImage(table, old)) : [])
      images.push(
        change.kind === 'delete'
          ? []
          : cells(change.row.map((cell, i) => (cell === undefined && table.before === 'row' ? old?.[i] : cell))),
      )
      ops.push(Op[change.kind])
      let index = schemas.indexOf(table)
      if (index < 0) index = schemas.push(table) - 1
      places.push(index)
    })
  }
  close()
  return events
}

/** Lent memory is used again after the next pull: whoever kept a view sees it. */
function poison(event: SourceEvent): void {
  if (event.kind === 'changes') {
    event.images.bytes.fill(0xee)
    event.op.fill(0xee)
  } else if (event.kind === 'message') event.content.fill(0xee)
}
