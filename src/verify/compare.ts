import { nativeToText } from '../avro/native.ts'
import type { Digest, TableReader } from '../connector.ts'
import type { Range, TableSchema } from '../model.ts'
import { readImage, Tag, type Cell, type Rows } from '../rows.ts'
import { readDigest, rowHash } from './digest.ts'

/** Readers of both ends, each of its moment. */
export type Ends = { readonly source: TableReader; readonly target: TableReader }
/** A row that was not seen alike at both ends. `key`: the texts of its key, or of the whole row where there is none; nothing else tells it apart. */
export type Suspect = { readonly key: readonly (string | null)[] }
/** Rows of the source and of the target in a range, whether their digests agree, and both as one text: the same as long as nobody writes to the range. */
export type Compared = {
  readonly source: number
  readonly target: number
  readonly equal: boolean
  readonly digests: string
}

/** Reads the digest of a range at both ends at once. */
export async function compareRange(
  { source, target }: Ends,
  schema: TableSchema,
  range: Range,
  signal: AbortSignal,
): Promise<Compared> {
  const [at, to] = await both(
    signal,
    async (signal) => await readDigest(source, schema, range, signal),
    async (signal) => await readDigest(target, schema, range, signal),
  )
  const digests = [...at.sums, ...to.sums].join(' ')
  return { source: at.rows, target: to.rows, equal: isEqual(at, to), digests }
}

function isEqual(a: Digest, b: Digest): boolean {
  return a.rows === b.rows && a.sums[0] === b.sums[0] && a.sums[1] === b.sums[1]
}

/** Both, or the failure of the first that fails, once the other has ended too. */
async function both<T>(
  signal: AbortSignal,
  one: (signal: AbortSignal) => Promise<T>,
  other: (signal: AbortSignal) => Promise<T>,
): Promise<readonly [T, T]> {
  const failed = new AbortController()
  const either = AbortSignal.any([signal, failed.signal])
  const guarded = async (work: (signal: AbortSignal) => Promise<T>): Promise<T> => {
    try {
      return await work(either)
    } catch (error) {
      failed.abort(error)
      throw error
    }
  }
  const [a, b] = await Promise.allSettled([guarded(one), guarded(other)])
  if (a.status === 'fulfilled' && b.status === 'fulfilled') return [a.value, b.value]
  throw failed.signal.reason
}

/** Rows of a part that are read from both ends instead of being digested in smaller ones. */
const rowsToRead = 1_000
const partsOf = 16
/** Of a group: rows, and bytes of them where they are whole rows. */
const mostSuspects = 1_000
const mostBytes = 4 << 20

/** The rows in which a range differs, in groups; found by parts whose digests differ, down to parts that are read. Each group is of a moment of its own. */
export async function* findSuspects(
  ends: Ends,
  schema: TableSchema,
  range: Range,
  rows: { readonly source: number; readonly target: number },
  signal: AbortSignal,
): AsyncGenerator<readonly Suspect[], void, void> {
  const most = Math.max(rows.source, rows.target)
  if (most > rowsToRead) {
    // Where more rows are, there are bounds that cut them.
    const cutter = rows.source >= rows.target ? ends.source : ends.target
    const size = Math.max(rowsToRead, Math.ceil(most / partsOf))
    const parts = await cutter.split(schema, { ...range, estimatedRows: most }, size, signal)
    if (parts.length > 1) {
      for (const part of parts) {
        const compared = await compareRange(ends, schema, part, signal)
        if (!compared.equal) yield* findSuspects(ends, schema, part, compared, signal)
      }
      return
    }
  }
  yield* schema.key.length === 0 ? readWhole(ends, schema, range, signal) : readKeyed(ends, schema, range, signal)
}

/** Holds a hash for each row of the source, and then the keys that differ: whoever gets a group reads by the same readers. */
async function* readKeyed(
  { source, target }: Ends,
  schema: TableSchema,
  range: Range,
  signal: AbortSignal,
): AsyncGenerator<readonly Suspect[], void, void> {
  const hashOf = rowHash(schema)
  const unmatched = new Map<string, string>()
  for await (const rows of source.rows(schema, range, signal))
    for (const [start, end] of spans(rows))
      unmatched.set(keyName(schema, rows, start, end), hashOf(asBuffer(rows), start, end))
  const differ: string[] = []
  for await (const rows of target.rows(schema, range, signal))
    for (const [start, end] of spans(rows)) {
      const name = keyName(schema, rows, start, end)
      if (unmatched.get(name) !== hashOf(asBuffer(rows), start, end)) differ.push(name)
      unmatched.delete(name)
    }
  differ.push(...unmatched.keys())
  for (let from = 0; from < differ.length; from += mostSuspects)
    yield differ.slice(from, from + mostSuspects).map((name) => ({ key: JSON.parse(name) as (string | null)[] }))
}

/** Counts copies by hash; then reads the rows whose numbers differ, from the end that has more of them. */
async function* readWhole(
  { source, target }: Ends,
  schema: TableSchema,
  range: Range,
  signal: AbortSignal,
): AsyncGenerator<readonly Suspect[], void, void> {
  const hashOf = rowHash(schema)
  const more = new Map<string, number>()
  const count = async (reader: TableReader, step: 1 | -1): Promise<void> => {
    for await (const rows of reader.rows(schema, range, signal))
      for (const [start, end] of spans(rows)) {
        const hash = hashOf(asBuffer(rows), start, end)
        const now = (more.get(hash) ?? 0) + step
        if (now === 0) more.delete(hash)
        else more.set(hash, now)
      }
  }
  await count(source, 1)
  await count(target, -1)
  const whole = schema.columns.map((_, i) => i)
  /** One group; what was taken is no longer wanted. The reading has ended when it resolves. */
  const take = async (reader: TableReader, wanted: Set<string>): Promise<readonly Suspect[]> => {
    const group: Suspect[] = []
    let bytes = 0
    for await (const rows of reader.rows(schema, range, signal)) {
      for (const [start, end] of spans(rows)) {
        if (!wanted.delete(hashOf(asBuffer(rows), start, end))) continue
        group.push({ key: texts(schema, rows, start, end, whole) })
        bytes += end - start
        if (group.length === mostSuspects || bytes > mostBytes) return group
      }
    }
    wanted.clear() // gone since they were counted
    return group
  }
  for (const [reader, sign] of [[source, 1] as const, [target, -1] as const]) {
    const wanted = new Set([...more].flatMap(([hash, surplus]) => (Math.sign(surplus) === sign ? hash : [])))
    while (wanted.size > 0) {
      const group = await take(reader, wanted)
      if (group.length > 0) yield group
    }
  }
}

export function* spans({ starts, count }: Rows): Generator<readonly [number, number], void, void> {
  for (let i = 0; i < count; i++) yield [starts[i] ?? 0, starts[i + 1] ?? 0]
}
export function asBuffer({ bytes }: Rows): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** Of the same row at both ends, the same text: cells may come in either of two forms. */
export function texts(
  schema: TableSchema,
  rows: Rows,
  start: number,
  end: number,
  columns: readonly number[],
): readonly (string | null)[] {
  const cells = readImage(rows.bytes, start, end)
  return columns.map((column) => {
    const cell = cells[column]
    if (!cell) return null
    const form = schema.columns[column]?.form ?? 'text'
    const bytes = Buffer.from(cell.bytes.buffer, cell.bytes.byteOffset, cell.bytes.byteLength)
    return cell.tag === Tag.native && form !== 'text' ? nativeToText(form, bytes) : bytes.toString()
  })
}

function keyName(schema: TableSchema, rows: Rows, start: number, end: number): string {
  return JSON.stringify(texts(schema, rows, start, end, schema.key))
}

/** Cells of a row image for a lookup. */
export function cellsOf(texts: readonly (string | null)[]): readonly Cell[] {
  return texts.map((text) => (text === null ? null : { tag: Tag.text, bytes: Buffer.from(text) }))
}
