import type pg from 'pg'
import type { TableReader } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import { tableName, type Range, type TableId, type TableSchema } from '../../src/model.ts'
import type { Rows } from '../../src/rows.ts'
import { close, connect, type PostgresConfig } from './config.ts'
import { copyOut, destroy } from './copy-out.ts'
import { copyRows } from './copy-rows.ts'
import { selectDigest } from './digest.ts'
import { mapError, sqlState } from './errors.ts'
import { isLockTimeout, lookLimitMs, namingLockers } from './lockers.ts'
import { lookupQuery, selectCopies } from './lookup.ts'
import { beginReading, ident, qualified } from './queries.ts'
import {
  between,
  hashBounds,
  isRangeable,
  rangeCondition,
  rangesOf,
  readBounds,
  readSteps,
  type Keyed,
} from './ranges.ts'
import { readCatalog, readCatalogOf, type CatalogTable } from './schema.ts'
import { bulkFormats, textOf } from './types.ts'

/**
 * Opens a reader of its own connection, in the view of an exported snapshot or of each call's moment ('now'). `tables`: the
 * catalog where the caller has it already. Rejects with SNAPSHOT_LOST at the first call when the snapshot is gone.
 */
export async function openReader(
  config: PostgresConfig,
  at: string,
  pipeline: string,
  signal: AbortSignal,
  tables?: readonly CatalogTable[],
): Promise<TableReader> {
  let client: pg.Client | undefined = await session(signal)
  let partial = false
  const catalog = new Map((tables ?? (await lookAtAll(client))).map((table) => [tableName(table.table), table]))

  function session(signal: AbortSignal): Promise<pg.Client> {
    // A copy waits for a table as long as its snapshot lives; who looks at this moment is told that he has to.
    return connect(config, { name: 'reader', pipeline, lockTimeoutMs: at === 'now' ? lookLimitMs : 0 }, signal)
  }

  /** None where somebody has locked one of them: then each is looked at when it is asked for, and only that one is waited for. */
  async function lookAtAll(using: pg.Client): Promise<readonly CatalogTable[]> {
    const patience = async (ms: number): Promise<unknown> => await using.query(`set lock_timeout = '${ms}ms'`)
    try {
      if (at === 'now') await patience(impatientMs)
      const all = await readCatalog(using, () => true)
      if (at === 'now') await patience(lookLimitMs)
      return all
    } catch (error) {
      partial = at === 'now' && isLockTimeout(error)
      if (!partial) throw mapError(error)
      await patience(lookLimitMs)
      return []
    }
  }

  async function lookAt(table: TableId, signal: AbortSignal): Promise<void> {
    client ??= await session(signal)
    const using = client
    try {
      const found = namingLockers(using, async () => await readCatalogOf(using, table))
      for (const each of await cutOnAbort(using, signal, found)) catalog.set(tableName(table), each)
    } catch (error) {
      throw await fail(error, table, signal)
    }
  }

  /** In a transaction that sees the snapshot, holds the table as it is, and has proved that it is the table the snapshot saw (H4). */
  async function begin(table: CatalogTable, signal: AbortSignal): Promise<pg.Client> {
    client ??= await session(signal)
    const using = client
    const seen = await cutOnAbort(
      using,
      signal,
      beginReading(using, at, qualified(table.table), table.table).catch(async (error: unknown) => {
        if (!isLockTimeout(error)) throw error
        await using.query('rollback')
        return await namingLockers(using, () => Promise.reject(error))
      }),
    )
    if (seen === 'no snapshot') throw new Failure('SNAPSHOT_LOST', { object: at })
    if (!seen.same) throw new Failure('TABLE_REWRITTEN', { object: tableName(table.table) })
    const changed =
      table.columns.map((column) => `${column.attnum} ${column.name} ${column.typeOid}`).join('\n') !==
        seen.seen.join('\n') ||
      table.columns.map((column) => `${column.attnum} ${column.name} ${column.base.oid}`).join('\n') !==
        seen.found.join('\n')
    if (changed)
      throw new Failure('TABLE_CHANGED', {
        object: tableName(table.table),
        observed: 'columns were altered while it was read',
      })
    return using
  }

  /** Whatever went wrong, the session is either out of its transaction or gone. */
  async function fail(error: unknown, table: TableId, signal: AbortSignal): Promise<Error> {
    const failed = client
    client = undefined
    if (failed) {
      destroy(failed)
      await close(failed)
    }
    if (signal.aborted)
      return signal.reason instanceof Error ? signal.reason : new Error('aborted', { cause: signal.reason })
    if (sqlState(error) === '42703') return new Failure('TABLE_CHANGED', { object: tableName(table), cause: error })
    return mapError(error, tableName(table))
  }

  async function* read<Piece>(
    table: CatalogTable,
    signal: AbortSignal,
    pieces: (client: pg.Client) => AsyncIterable<Piece>,
  ): AsyncGenerator<Piece, void, void> {
    let done = false
    try {
      const using = await begin(table, signal)
      yield* pieces(using)
      await using.query('commit')
      done = true
    } catch (error) {
      done = true
      throw await fail(error, table.table, signal)
    } finally {
      // Abandoned between two pieces: the session is in the middle of an answer.
      if (!done) await fail(undefined, table.table, signal)
    }
  }

  /** One answer, which an abort does not wait for. */
  async function readOnce<Answer>(
    table: CatalogTable,
    signal: AbortSignal,
    ask: (client: pg.Client) => Promise<Answer>,
  ): Promise<Answer> {
    signal.throwIfAborted()
    const answers = read(table, signal, async function* (using) {
      yield await cutOnAbort(using, signal, ask(using))
    })
    let answer: { readonly is: Answer } | undefined
    for await (const is of answers) answer = { is }
    if (answer === undefined) throw new Failure('BUG', { object: tableName(table.table), observed: 'no answer' })
    return answer.is
  }

  async function described(schema: TableSchema, signal: AbortSignal): Promise<Described> {
    if (partial && !catalog.has(tableName(schema.table))) await lookAt(schema.table, signal)
    return tableOf(schema)
  }

  function tableOf(schema: TableSchema): Described {
    const table = catalog.get(tableName(schema.table))
    if (!table) throw new Failure('TABLE_MISSING', { object: tableName(schema.table) })
    const byName = new Map(table.columns.map((column) => [column.name, column]))
    const columns = schema.columns.map(({ name }) => {
      const column = byName.get(name)
      if (!column) throw new Failure('TARGET_SHAPE', { object: tableName(schema.table), observed: `no column ${name}` })
      return column
    })
    const key = schema.key.flatMap((index) => columns[index] ?? [])
    return { table, columns, key }
  }

  return {
    async ranges(schema, rows, signal) {
      const { table, columns, key } = await described(schema, signal)
      const whole: Range = { table: schema.table, estimatedRows: table.estimatedRows }
      const wanted = rangesOf(rows, table.estimatedRows)
      if (!isRangeable(key) || wanted < 2) return [whole]
      const bounds = await readOnce(table, signal, (using) => readBounds(using, schema.table, { columns, key }, wanted))
      return between(whole, bounds, Math.round(table.estimatedRows / (bounds.length + 1)))
    },
    async split(schema, range, rows, signal) {
      const found = await described(schema, signal)
      const parts = Math.min(mostParts, rangesOf(rows, range.estimatedRows))
      if (parts < 2) return [range]
      const bounds = await readOnce(found.table, signal, async (using) => {
        if (found.key.length === 0) return hashBounds(range, parts)
        if (range.from === undefined && range.to === undefined)
          return await readBounds(using, schema.table, found, parts)
        return await readSteps(using, range, found, Math.ceil(range.estimatedRows / parts))
      })
      return between(range, bounds, Math.ceil(range.estimatedRows / (bounds.length + 1)))
    },
    async *rows(schema, range, signal) {
      const found = await described(schema, signal)
      const { table, columns, key } = found
      const cells = columns.map((column) => textOf(column, `t.${ident(column.name)}`)).join(', ')
      const order = key.length === 0 ? '' : ` order by ${key.map((column) => `t.${ident(column.name)}`).join(', ')}`
      const select = `select ${cells} from only ${qualified(schema.table)} t where ${rangeCondition(range, found)}${order}`
      yield* read(table, signal, (using) =>
        copyRows(copyOut(using, `copy (${select}) to stdout (format binary)`, signal), columns.length),
      )
    },
    async lookup(schema, keys, signal) {
      const found = await described(schema, signal)
      const { table, columns } = found
      const versions: string[] = []
      const select = lookupQuery(schema, found, keys)
      const parts: { bytes: Uint8Array; starts: Int32Array }[] = []
      const pieces = read(table, signal, async function* (using) {
        // A few keys through the index, however many the planner thinks they are.
        await using.query('set local enable_hashjoin = off; set local enable_mergejoin = off')
        yield* copyRows(
          copyOut(using, `copy (${select}) to stdout (format binary)`, signal),
          columns.length,
          1,
          ([version]) => {
            versions.push(version ?? '')
            return version !== null && version !== undefined
          },
        )
      })
      for await (const rows of pieces) parts.push({ bytes: Uint8Array.from(rows.bytes), starts: rows.starts.slice() })
      return { ...joined(parts), versions }
    },
    async copies(schema, rows, signal) {
      const found = await described(schema, signal)
      return await readOnce(found.table, signal, (using) => selectCopies(using, schema, found, rows))
    },
    async digest(schema, range, signal) {
      const found = await described(schema, signal)
      const condition = rangeCondition(range, found)
      return await readOnce(found.table, signal, (using) => selectDigest(using, schema.table, found.columns, condition))
    },
    formats: (schema) => bulkFormats(narrowed(tableOf(schema))),
    frames(schema, range, format, signal) {
      const described = tableOf(schema)
      const { table, columns } = described
      if (!bulkFormats(narrowed(described)).includes(format))
        throw new Failure('BUG', { object: tableName(schema.table), observed: `format ${format}` })
      const select = `select ${columns.map((column) => `t.${ident(column.name)}`).join(', ')} from only ${qualified(schema.table)} t where ${rangeCondition(range, described)}`
      const form = format === 'text' ? 'text' : 'binary'
      return read(table, signal, (using) => copyOut(using, `copy (${select}) to stdout (format ${form})`, signal))
    },
    async [Symbol.asyncDispose]() {
      const closing = client
      client = undefined
      if (closing) await close(closing)
    },
  }
}

/** Cuts the connection, so that the work rejects, when the signal aborts before it is done. */
async function cutOnAbort<Result>(client: pg.Client, signal: AbortSignal, work: Promise<Result>): Promise<Result> {
  const cut = (): void => destroy(client)
  signal.addEventListener('abort', cut, { once: true })
  try {
    return await work
  } finally {
    signal.removeEventListener('abort', cut)
  }
}

/** How long a look at all tables at once waits for whoever has locked one of them. */
const impatientMs = 1_000

/** Into how many parts a range is split at most: without an index each part reads the whole table. */
const mostParts = 16

/** A table with its columns in the schema's order; the schema may be that of the other end. */
type Described = Keyed & { readonly table: CatalogTable }

/** The table with the schema's columns in the schema's order: what the frames hold. */
function narrowed({ table, columns }: Described): CatalogTable {
  return { ...table, columns }
}

function joined(parts: readonly { bytes: Uint8Array; starts: Int32Array }[]): Rows {
  const count = parts.reduce((sum, part) => sum + part.starts.length - 1, 0)
  const starts = new Int32Array(count + 1)
  let at = 0
  let base = 0
  for (const part of parts) {
    for (let i = 1; i < part.starts.length; i++) starts[++at] = base + (part.starts[i] ?? 0)
    base += part.bytes.length
  }
  return { bytes: Buffer.concat(parts.map((part) => part.bytes)), starts, count }
}
