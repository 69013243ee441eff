import type { Form, TableSchema } from '../../src/model.ts'
import type { Output } from '../../src/output.ts'
import { Tag, type Rows } from '../../src/rows.ts'
import { nativeOids, nativeText } from './types.ts'

/** Which images of `rows` a statement takes: `count` of them from image `first` on, each `step`-th. */
export type Slice = { readonly rows: Rows; readonly first: number; readonly step: number; readonly count: number }

export function slice(rows: Rows, first = 0, count: number = rows.count, step = 1): Slice {
  return { rows, first, count, step }
}

/** Number of cells of the slice's images: that of the table's columns, or of its key's where only keys are given; 0 for an empty image. */
export function width({ rows, first }: Slice): number {
  const start = rows.starts[first] ?? 0
  return start === rows.starts[first + 1] ? 0 : ((rows.bytes[start] ?? 0) << 8) | (rows.bytes[start + 1] ?? 0)
}

/** Sets `tags[c]` to the tag of cell c of one image. */
export function readTags(rows: Rows, image: number, tags: Uint8Array): void {
  const { bytes, starts } = rows
  let at = (starts[image] ?? 0) + 2
  const end = starts[image + 1] ?? 0
  for (let c = 0; at < end; c++) {
    const tag = bytes[at] ?? 0
    tags[c] = tag
    at = after(bytes, at, tag)
  }
}

function after(bytes: Uint8Array, at: number, tag: number): number {
  if (tag === Tag.null || tag === Tag.absent) return at + 1
  if (tag !== Tag.text && tag !== Tag.native) throw new RangeError(`cell tag ${tag}`)
  return at + 5 + int32(bytes, at + 1)
}
function int32(bytes: Uint8Array, at: number): number {
  return ((bytes[at] ?? 0) << 24) | ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0)
}
function setInt32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24
  bytes[at + 1] = value >>> 16
  bytes[at + 2] = value >>> 8
  bytes[at + 3] = value
}

/** Where each image of the slice is read next: images are walked column by column. */
let cursors = new Int32Array(8192)

/** Appends one binary array parameter for each cell of `wanted`, in rising order of cells: `wanted[c]` is the form of cell c if the statement takes it as
 *  its native type, 'text' if it takes text, undefined if it does not take it. Returns the first cell that is text where the native type was
 *  expected: then nothing is appended, and the caller tries again with text. */
export function appendArrays(
  out: Output,
  { rows, first, step, count }: Slice,
  cells: number,
  wanted: readonly (Form | undefined)[],
  columns: TableSchema['columns'],
): number | undefined {
  const source = Buffer.from(rows.bytes.buffer, rows.bytes.byteOffset, rows.bytes.byteLength)
  const { starts } = rows
  if (cursors.length < count) cursors = new Int32Array(count * 2)
  const at = cursors
  let size = 0
  for (let i = 0; i < count; i++) {
    const image = first + i * step
    const start = starts[image] ?? 0
    size += (starts[image + 1] ?? 0) - start
    if ((((source[start] ?? 0) << 8) | (source[start + 1] ?? 0)) !== cells)
      throw new RangeError(`an image of other than ${cells} cells among ${count}`)
    at[i] = start + 2
  }
  // Enough for every cell copied as it is; a null takes four bytes.
  const bound = size + (4 * count + 24) * wanted.length
  out.reserve(bound)
  const began = out.at
  let bytes = out.bytes
  let to = began
  for (let c = 0; c < cells; c++) {
    const form = wanted[c]
    if (form === undefined) {
      for (let i = 0; i < count; i++) at[i] = after(source, at[i] ?? 0, source[at[i] ?? 0] ?? 0)
      continue
    }
    const head = to
    to += 24
    let nulls = 0
    for (let i = 0; i < count; i++) {
      const from = at[i] ?? 0
      const tag = source[from]
      if (tag === Tag.null) {
        bytes[to] = bytes[to + 1] = bytes[to + 2] = bytes[to + 3] = 0xff
        to += 4
        at[i] = from + 1
        nulls = 1
        continue
      }
      if (tag === Tag.absent) throw new RangeError(`cell ${c} is absent where the statement needs it`)
      const end = from + 5 + int32(source, from + 1)
      at[i] = end
      if (tag === Tag.text && form !== 'text') {
        out.at = began
        return c
      }
      const own = columns[c]?.form ?? 'text'
      if (tag === Tag.native && form === 'text' && own !== 'text') {
        const printed = Buffer.from(nativeText(own, source.subarray(from + 5, end)))
        out.at = to
        out.reserve(bound + 4 + printed.length)
        bytes = out.bytes
        setInt32(bytes, to, printed.length)
        bytes.set(printed, to + 4)
        to += 4 + printed.length
      } else if (end - from > 64) {
        source.copy(bytes, to, from + 1, end)
        to += end - from - 1
      } else for (let p = from + 1; p < end; p++) bytes[to++] = source[p] ?? 0
    }
    setInt32(bytes, head, to - head - 4)
    setInt32(bytes, head + 4, 1)
    setInt32(bytes, head + 8, nulls)
    setInt32(bytes, head + 12, nativeOids[form])
    setInt32(bytes, head + 16, count)
    setInt32(bytes, head + 20, 1)
  }
  out.at = to
  return undefined
}
