import type { FetchedBatch } from '../change-log/change-log.ts'
import type { TableSchema } from '../model.ts'
import type { Decoder, Prefix, ReadPrefix } from './plan.ts'
import type { Output } from '../output.ts'
import { Failure } from '../errors.ts'
import { Tag } from '../rows.ts'
import { controlSchemaId } from './control.ts'
import { tableSchema } from './envelope.ts'
import { Code, codeOf } from './native.ts'
import { broken, cursor, readInt, readNumber, readSize, readToNative, skipLong } from './read.ts'
import { copyBytes, reading, writing, type Memory } from './varint.ts'

/** Operation by the letter of the envelope; 255: none. */
const ops = new Uint8Array(256).fill(255)
Buffer.from('cudrp').forEach((letter, op) => {
  ops[letter] = op
})

export const readPrefix: ReadPrefix = (batch, i, into) => {
  const start = batch.bounds[4 * i + 2] as number
  const end = batch.bounds[4 * i + 3] as number
  if (start < 0) return 'none'
  const { bytes, view } = reading(batch.bytes)
  if (end - start < 5 || bytes[start] !== 0) return 'none'
  into.schemaId = view.getUint32(start + 1)
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

/** From an envelope's schema as it stands in the log. Throws LOG_DAMAGED naming partition and offset at bytes that are no envelope of it; never reads
 *  beyond the record. */
export function compileDecoder(avro: object): Decoder {
  const schema = tableSchema(avro)
  const plan = compile(schema)
  return {
    schema,
    images(out, batch, i, prefix) {
      const end = batch.bounds[4 * i + 3] as number
      out.reserve(2 * (2 + 13 * plan.columns) + Math.max(0, end - prefix.rest))
      try {
        return readImages(plan, out, reading(batch.bytes), prefix.rest, end)
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

function readImages(plan: Plan, out: Output, from: Memory, start: number, end: number): number {
  const { absent } = plan
  const { bytes } = from
  const sent = start < end && bytes[start] === 0
  cursor.at = start
  if (sent) cursor.at++
  else {
    absent.fill(0)
    readAbsent(absent, bytes, end)
  }
  const to = writing(out.bytes)
  const middle = readRow(plan, plan.untrusted, to, out.at, from, end)
  const at = readRow(plan, absent, to, middle, from, end)
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
function readRow(plan: Plan, flags: Uint8Array, to: Memory, at: number, from: Memory, end: number): number {
  const { bytes } = from
  let next = cursor.at
  if (next >= end) throw broken
  const present = bytes[next++]
  if (present !== 2) {
    if (present !== 0) throw broken
    cursor.at = next
    return at
  }
  const { columns, codes } = plan
  const written = to.bytes
  to.view.setUint16(at, columns)
  at += 2
  for (let column = 0; column < columns; column++) {
    if (next >= end) throw broken
    const branch = bytes[next++]
    if (branch !== 2) {
      if (branch !== 0) throw broken
      written[at++] = flags[column] === 0 ? Tag.null : Tag.absent
      continue
    }
    const code = codes[column] as number
    cursor.at = next
    if (code === Code.text || code === Code.bytes) {
      const size = readSize(bytes, end)
      next = cursor.at
      written[at] = code === Code.text ? Tag.text : Tag.native
      to.view.setInt32(at + 1, size)
      at = copyBytes(to, at + 5, from, next, next + size)
      next += size
    } else {
      written[at] = Tag.native
      at = readNative(code, to, at + 1, from, end)
      next = cursor.at
    }
  }
  cursor.at = next
  return at
}

/** Length and bytes of a cell of fixed size. */
function readNative(code: number, to: Memory, at: number, from: Memory, end: number): number {
  const start = cursor.at
  const source = from.view
  const target = to.view
  switch (code) {
    case Code.int64:
      target.setInt32(at, 8)
      readToNative(from.bytes, end, target, at + 4)
      return at + 12
    case Code.int32:
      target.setInt32(at, 4)
      target.setInt32(at + 4, readInt(from.bytes, end))
      return at + 8
    case Code.int16: {
      const value = readInt(from.bytes, end)
      if (value < -32768 || value > 32767) throw broken
      target.setInt32(at, 2)
      target.setInt16(at + 4, value)
      return at + 6
    }
    case Code.bool: {
      if (start >= end || source.getUint8(start) > 1) throw broken
      target.setInt32(at, 1)
      target.setUint8(at + 4, source.getUint8(start))
      cursor.at = start + 1
      return at + 5
    }
    case Code.float64:
      if (start + 8 > end) throw broken
      target.setInt32(at, 8)
      target.setUint32(at + 4, source.getUint32(start + 4, true))
      target.setUint32(at + 8, source.getUint32(start, true))
      cursor.at = start + 8
      return at + 12
    default:
      if (start + 4 > end) throw broken
      target.setInt32(at, 4)
      target.setUint32(at + 4, source.getUint32(start, true))
      cursor.at = start + 4
      return at + 8
  }
}

/** What helps where a record of somebody else, or of a log that lost its schemas, stands in the way. It cannot be told from one of ours, so nothing
 *  passes over it; a table that is taken in anew begins behind it, with a copy that holds whatever it may have been. */
export const strangerNext: string =
  'Take the right to write to this topic away from others. Then copy its table anew, which begins behind that record: name the table under tables.exclude, start and stop; empty it at the target; name it no longer, and start. Where it is the only table, copy under another pipeline name'

function damaged(batch: FetchedBatch, i: number): Failure {
  return new Failure('LOG_DAMAGED', {
    object: `topic ${batch.topic}, partition ${batch.partition}, offset ${batch.offsets[i]}`,
    observed: `a record that names schema ${schemaIdOf(batch, i)} and is no envelope of it`,
    needed: 'records of crossfade only',
    effect: 'nothing from this record on is applied',
    next: strangerNext,
  })
}

function schemaIdOf(batch: FetchedBatch, i: number): number {
  return reading(batch.bytes).view.getUint32((batch.bounds[4 * i + 2] ?? 0) + 1)
}
