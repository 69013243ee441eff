import type { FetchedBatch } from '../change-log/change-log.ts'
import type { TableSchema } from '../model.ts'
import type { Decoder, Prefix, ReadPrefix } from './plan.ts'
import { Failure } from '../errors.ts'
import { partitionName } from '../model.ts'
import { Tag } from '../rows.ts'
import { controlSchemaId } from './control.ts'
import { tableSchema } from './envelope.ts'
import { Code, codeOf } from './native.ts'
import { broken, cursor, readInt, readNumber, readSize, readToNative, skipLong } from './read.ts'
import { asBuffer, copyBytes } from './varint.ts'
import { copyReversed } from './write-cell.ts'

/** Operation by the letter of the envelope; 255: none. */
const ops = new Uint8Array(256).fill(255)
Buffer.from('cudrp').forEach((letter, op) => {
  ops[letter] = op
})

export const readPrefix: ReadPrefix = (batch, i, into) => {
  const start = batch.bounds[4 * i + 2] as number
  const end = batch.bounds[4 * i + 3] as number
  if (start < 0) return 'none'
  const bytes = asBuffer(batch.bytes)
  if (end - start < 5 || bytes[start] !== 0) return 'none'
  into.schemaId =
    (((bytes[start + 1] as number) << 24) |
      ((bytes[start + 2] as number) << 16) |
      ((bytes[start + 3] as number) << 8) |
      (bytes[start + 4] as number)) >>>
    0
  if (into.schemaId === controlSchemaId) {
    into.rest = start + 5
    return 'control'
  }
  try {
    readChange(bytes, start + 5, end, into)
  } catch (error) {
    throw error === broken ? damaged(batch, i) : error
  }
  return 'change'
}

function readChange(bytes: Buffer, at: number, end: number, into: Prefix): void {
  if (end - at < 3 || bytes[at] !== 2) throw broken
  const op = ops[bytes[at + 1] as number] as number
  if (op === 255) throw broken
  into.op = op
  cursor.at = at + 2
  const position = readSize(bytes, end)
  into.positionStart = cursor.at
  cursor.at += position
  into.positionEnd = cursor.at
  into.seq = readNumber(bytes, end)
  into.epoch = readNumber(bytes, end)
  const id = readSize(bytes, end)
  cursor.at += id
  into.committedAt = readNumber(bytes, end) / 1000
  cursor.at++ // snapshot
  skipLong(bytes, end) // ts_ms
  if (into.seq < 0 || into.epoch < 0) throw broken
  into.rest = cursor.at
}

/** What is known of a writer's schema before its first record. The flags tell what a null stands for. */
type Plan = {
  readonly columns: number
  readonly codes: Uint8Array
  readonly untrusted: Uint8Array
  readonly absent: Uint8Array
}

/** From an envelope's schema as it stands in the log. Throws LOG_DAMAGED naming partition and offset at bytes that are no envelope of it; never reads beyond the record. */
export function compileDecoder(avro: object): Decoder {
  const schema = tableSchema(avro)
  const plan = compile(schema)
  return {
    schema,
    images(out, batch, i, prefix) {
      const end = batch.bounds[4 * i + 3] as number
      out.reserve(2 * (2 + 13 * plan.columns) + Math.max(0, end - prefix.rest))
      try {
        return readImages(plan, out, asBuffer(batch.bytes), prefix.rest, end)
      } catch (error) {
        throw error === broken ? damaged(batch, i) : error
      }
    },
  }
}

function compile(schema: TableSchema): Plan {
  const codes = Uint8Array.from(schema.columns, (column) => codeOf(column.form))
  const trusted = (i: number): boolean => schema.before === 'row' || schema.key.includes(i)
  return {
    columns: codes.length,
    codes,
    untrusted: codes.map((_, i) => (trusted(i) ? 0 : 1)),
    absent: new Uint8Array(codes.length),
  }
}

function readImages(
  plan: Plan,
  out: { readonly bytes: Buffer; at: number },
  bytes: Buffer,
  start: number,
  end: number,
): number {
  const { absent } = plan
  const sent = start < end && bytes[start] === 0
  cursor.at = start
  if (sent) cursor.at++
  else {
    absent.fill(0)
    readAbsent(absent, bytes, end)
  }
  const to = out.bytes
  const middle = readRow(plan, plan.untrusted, to, out.at, bytes, end)
  const at = readRow(plan, absent, to, middle, bytes, end)
  if (!sent) absent.fill(0)
  if (cursor.at !== end) throw broken
  out.at = at
  return middle
}

/** An Avro array: blocks of a count (negative: a size in bytes follows) and items, until an empty one. */
function readAbsent(absent: Uint8Array, bytes: Buffer, end: number): void {
  for (let count = readInt(bytes, end); count !== 0; count = readInt(bytes, end)) {
    if (count < 0) skipLong(bytes, end)
    for (let left = Math.abs(count); left > 0; left--) {
      const column = readInt(bytes, end)
      if (column < 0 || column >= absent.length) throw broken
      absent[column] = 1
    }
  }
}

/** A nullable row as an image at `at`; returns its end, which is `at` if there is none. A null is absent where `flags` says so. */
function readRow(plan: Plan, flags: Uint8Array, to: Buffer, at: number, bytes: Buffer, end: number): number {
  let from = cursor.at
  if (from >= end) throw broken
  const present = bytes[from++]
  if (present !== 2) {
    if (present !== 0) throw broken
    cursor.at = from
    return at
  }
  const { columns, codes } = plan
  to[at] = columns >>> 8
  to[at + 1] = columns
  at += 2
  for (let column = 0; column < columns; column++) {
    if (from >= end) throw broken
    const branch = bytes[from++]
    if (branch !== 2) {
      if (branch !== 0) throw broken
      to[at++] = flags[column] === 0 ? Tag.null : Tag.absent
      continue
    }
    const code = codes[column] as number
    if (code === Code.text || code === Code.bytes) {
      cursor.at = from
      const size = readSize(bytes, end)
      from = cursor.at
      at = writeHead(to, at, code === Code.text ? Tag.text : Tag.native, size)
      at = copyBytes(to, at, bytes, from, from + size)
      from += size
    } else if (code === Code.float64 || code === Code.float32) {
      const size = code === Code.float64 ? 8 : 4
      if (from + size > end) throw broken
      at = copyReversed(to, writeHead(to, at, Tag.native, size), bytes, from, from + size)
      from += size
    } else if (code === Code.bool) {
      const value = bytes[from] as number
      if (from >= end || value > 1) throw broken
      at = writeHead(to, at, Tag.native, 1)
      to[at++] = value
      from++
    } else {
      cursor.at = from
      const size = code === Code.int64 ? 8 : code === Code.int32 ? 4 : 2
      at = writeHead(to, at, Tag.native, size)
      if (code === Code.int64) readToNative(bytes, end, to, at)
      else {
        const value = readInt(bytes, end)
        if (code === Code.int32) {
          to[at] = value >>> 24
          to[at + 1] = value >>> 16
          to[at + 2] = value >>> 8
          to[at + 3] = value
        } else {
          if (value < -32768 || value > 32767) throw broken
          to[at] = value >>> 8
          to[at + 1] = value
        }
      }
      at += size
      from = cursor.at
    }
  }
  cursor.at = from
  return at
}

function writeHead(to: Buffer, at: number, tag: number, size: number): number {
  to[at] = tag
  to[at + 1] = size >>> 24
  to[at + 2] = size >>> 16
  to[at + 3] = size >>> 8
  to[at + 4] = size
  return at + 5
}

function damaged(batch: FetchedBatch, i: number): Failure {
  return new Failure('LOG_DAMAGED', {
    object: `${partitionName(batch)} at offset ${batch.offsets[i]}`,
    observed: 'a record that is no envelope of its schema',
  })
}
