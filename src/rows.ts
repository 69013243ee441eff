import type { Position, TableSchema } from './model.ts'
import { Output } from './output.ts'
/** Cell tags of a row image. Integers are big-endian two's complement, floats IEEE 754, booleans one byte.
 *  A source may send `t` for any form; what comes out of the log is `b` unless the column's form is `text`. */
export const Tag = { null: 0x6e, absent: 0x75, text: 0x74, native: 0x62 } as const
/** Images back to back: image i is bytes[starts[i], starts[i + 1]); an empty one means there is none. */
export type Rows = { readonly bytes: Uint8Array; readonly starts: Int32Array; readonly count: number }
/** `patch` carries a description only its connector can apply: it is never folded. */
export const Op = { insert: 0, update: 1, delete: 2, read: 3, patch: 4 } as const
/** `first`: index in the batch of its first change here; change i has seq `firstSeq` + 4 (i - first), so a connector leaves no row message out. A
 *  long transaction spans batches. Clock: source, ms since 1970. */
export type Transaction = {
  readonly position: Position
  readonly committedAt: number
  readonly id: string
  readonly first: number
  readonly firstSeq: number
}
/** Row changes in commit order as columns. Change i has old image 2i and new image 2i + 1. All memory is lent until the next pull. */
export type ChangeBatch = {
  readonly kind: 'changes'
  readonly count: number
  readonly images: Rows
  readonly op: Uint8Array
  /** Index into `schemas`. */
  readonly table: Uint16Array
  readonly schemas: readonly TableSchema[]
  readonly transactions: readonly Transaction[]
}
/** Changes of one table for one statement; keys are distinct over all groups of a batch. `columns`: those present; the key alone for `delete`.
 *  `mayMiss`: an update without a row is no drift. */
export type RowGroup = {
  readonly schema: TableSchema
  readonly kind: 'delete' | 'upsert' | 'update'
  readonly mayMiss: boolean
  readonly columns: readonly number[]
  readonly rows: Rows
}
/** One transaction of a lane. `groups`: folded to the last change per key, deletes first. `inOrder`: tables that are never folded (no key, deferrable
 *  key, keys equal but not in bytes, patches), each in its partition's order. `ordered`: both, unfolded, for the replay after a constraint error; it
 *  extends to the end of a source transaction in each partition. */
export type LaneBatch = {
  readonly groups: readonly RowGroup[]
  readonly inOrder: ChangeBatch | undefined
  readonly mayMiss: boolean
  readonly ordered: () => ChangeBatch
}

/** A chunk's rows, as images or in a bulk format. */
export type ChunkData =
  | { readonly kind: 'rows'; readonly batches: AsyncIterable<Rows> }
  | { readonly kind: 'frames'; readonly format: string; readonly frames: AsyncIterable<Uint8Array> }
/** What a repair writes: for each of `keys` its row, or none where the image is empty. Without a key, `copies` tells how many there are to be of each
 *  whole row. */
export type Mending = { readonly keys: Rows; readonly rows: Rows; readonly copies?: readonly number[] }

/** A row image's cells: bytes and how to read them, null, or undefined where absent. For tests and single rows; batches are walked in place. */
export type Cell = { readonly tag: typeof Tag.text | typeof Tag.native; readonly bytes: Uint8Array } | null | undefined

export function appendImage(out: Output, cells: readonly Cell[]): void {
  let size = 2
  for (const cell of cells) size += cell ? 5 + cell.bytes.length : 1
  out.reserve(size)
  const { bytes } = out
  let at = bytes.writeUInt16BE(cells.length, out.at)
  for (const cell of cells) {
    if (cell) {
      bytes[at] = cell.tag
      at = bytes.writeInt32BE(cell.bytes.length, at + 1)
      bytes.set(cell.bytes, at)
      at += cell.bytes.length
    } else bytes[at++] = cell === null ? Tag.null : Tag.absent
  }
  out.at = at
}

/** Cells of the image at [start, end); an empty one has none. Views into `bytes`. */
export function readImage(bytes: Uint8Array, start: number, end: number): readonly Cell[] {
  if (start === end) return []
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const cells: Cell[] = []
  let at = start + 2
  for (let left = view.getUint16(start); left > 0; left--) {
    const tag = bytes[at++]
    if (tag === Tag.null) cells.push(null)
    else if (tag === Tag.absent) cells.push(undefined)
    else if (tag === Tag.text || tag === Tag.native) {
      const from = at + 4
      at = from + view.getInt32(at)
      cells.push({ tag, bytes: bytes.subarray(from, at) })
    } else throw new RangeError(`cell tag ${tag} at ${at - 1}`)
  }
  if (at !== end) throw new RangeError(`image ends at ${at}, not ${end}`)
  return cells
}

/** Rows from images; for tests, keys and lookups. */
export function rowsOf(images: readonly (readonly Cell[])[]): Rows {
  const out = new Output(1024)
  const starts = new Int32Array(images.length + 1)
  images.forEach((cells, i) => {
    if (cells.length > 0) appendImage(out, cells)
    starts[i + 1] = out.at
  })
  return { bytes: out.bytes.subarray(0, out.at), starts, count: images.length }
}

/** Whether a cell of the image that starts here was not sent. */
export function hasAbsentCell(bytes: Uint8Array, start: number): boolean {
  let at = start + 2
  for (let left = ((bytes[start] ?? 0) << 8) | (bytes[start + 1] ?? 0); left > 0; left--) {
    const tag = bytes[at++]
    if (tag === Tag.absent) return true
    if (tag !== Tag.null) at += 4 + cellLength(bytes, at)
  }
  return false
}

/** The four bytes after a cell's tag. */
export function cellLength(bytes: Uint8Array, at: number): number {
  return ((bytes[at] ?? 0) << 24) | ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0)
}
