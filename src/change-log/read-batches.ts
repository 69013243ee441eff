import { gunzipSync, zstdDecompressSync } from 'node:zlib'
import { Failure } from '../errors.ts'
import type { TopicPartition } from '../model.ts'
import {
  asBuffer,
  At,
  Attribute,
  batchSize,
  checksum,
  defaultMessageBytes,
  largestDecompressed,
  readOffset,
} from './batch-layout.ts'
import type { FetchedBatch } from './change-log.ts'

/** A record takes at least this: length, attributes, two deltas, key, value, headers. */
const smallestRecord = 7

/** `next`: the offset after it. */
type Span = { readonly start: number; readonly end: number; readonly next: number; readonly packed: boolean }
/** `batch`: the most that one batch may decompress to. `room`: what all may decompress to; with the batch that reaches it the reading ends. */
export type ReadLimits = { readonly batch: number; readonly room: number }

const limitsByDefault: ReadLimits = { batch: largestDecompressed(defaultMessageBytes), room: 16 * 1024 * 1024 }

/**
 * Record batches, back to back, of one partition: checked, decompressed within limits, and their records from offset `from` on indexed. A batch cut
 * off at the end, and those beyond the room, are left for the next reading; control batches of others and transactional markers are passed over. `next`
 * is `from` if no batch was whole. The result points into `section` unless something was compressed. LOG_DAMAGED if a checksum or a length is wrong.
 */
export function readBatches(
  at: TopicPartition,
  section: Uint8Array,
  from: number,
  end: number,
  limits: ReadLimits = limitsByDefault,
): FetchedBatch {
  const bytes = asBuffer(section)
  const spans: Span[] = []
  let next = from
  let total = 0
  let packed = 0
  for (let start = 0; ;) {
    if (start + At.records > bytes.length) break
    const size = batchSize(bytes, start)
    if (size === 0) throw damaged(at, next, 'no record batch of format 2')
    if (start + size > bytes.length) break
    if (checksum(bytes, start, start + size) !== bytes.readUInt32BE(start + At.crc))
      throw damaged(at, next, 'a checksum does not match')
    const lastDelta = bytes.readInt32BE(start + At.lastDelta)
    const base = readOffset(bytes, start)
    if (base < 0 || lastDelta < 0) throw damaged(at, next, 'an offset is out of range')
    if (base + lastDelta >= from) {
      next = base + lastDelta + 1
      const attributes = bytes.readInt16BE(start + At.attributes)
      if ((attributes & Attribute.control) === 0) {
        const compressed = (attributes & Attribute.codec) !== 0
        const count = bytes.readInt32BE(start + At.count)
        if (count < 0 || (!compressed && count * smallestRecord > size))
          throw damaged(at, base, 'a count is out of range')
        if (compressed) packed++
        total += count
        spans.push({ start, end: start + size, next, packed: compressed })
      }
    }
    start += size
  }
  if (packed > 0) return readPacked(at, bytes, spans, from, next, end, limits)
  const columns = new Columns(at, bytes, total, from)
  for (const span of spans) columns.index(bytes, span.start, span.start + At.records, span.end)
  return columns.batch(next, end)
}

/** As above with at least one compressed batch: all records come to lie in one new buffer. A few bytes may decompress to very many, so it ends when there
 *  is no more room. */
function readPacked(
  at: TopicPartition,
  bytes: Buffer,
  all: readonly Span[],
  from: number,
  next: number,
  end: number,
  limits: ReadLimits,
): FetchedBatch {
  const pieces: Buffer[] = []
  let total = 0
  let size = 0
  for (const span of all) {
    if (size >= limits.room && pieces.length > 0) {
      next = all[pieces.length - 1]?.next ?? next
      break
    }
    const records = bytes.subarray(span.start + At.records, span.end)
    const piece = span.packed
      ? decompress(at, bytes.readInt16BE(span.start + At.attributes) & Attribute.codec, records, limits.batch)
      : records
    const count = bytes.readInt32BE(span.start + At.count)
    if (count * smallestRecord > piece.length)
      throw damaged(at, readOffset(bytes, span.start), 'a count is out of range')
    total += count
    size += piece.length
    pieces.push(piece)
  }
  const [only] = pieces
  const arena = pieces.length === 1 && only !== undefined ? only : Buffer.concat(pieces, size)
  const columns = new Columns(at, arena, total, from)
  let start = 0
  pieces.forEach((piece, i) => {
    columns.index(bytes, all[i]?.start ?? 0, start, start + piece.length)
    start += piece.length
  })
  return columns.batch(next, end)
}

function decompress(at: TopicPartition, codec: number, records: Buffer, most: number): Buffer {
  const cap = { maxOutputLength: most }
  try {
    if (codec === Attribute.zstd) return zstdDecompressSync(records, { ...cap, chunkSize: contentSize(records, most) })
    if (codec === Attribute.gzip) return gunzipSync(records, cap)
  } catch (error) {
    if (error instanceof RangeError) throw overCap(at, most)
    throw damaged(at, -1, 'a batch cannot be decompressed')
  }
  throw new Failure('UNSUPPORTED', {
    object: place(at),
    observed: `records compressed with codec ${codec}`,
    needed: 'zstd or gzip',
    next: 'Set the topic’s compression.type to producer',
  })
}

/** Bytes to expect of a zstd frame by its header (RFC 8878, 3.1.1.1), and a few more: written in one piece, it costs a third. */
function contentSize(frame: Buffer, most: number): number {
  const descriptor = frame[4] ?? 0
  const single = (descriptor & 0x20) !== 0
  const at = 5 + (single ? 0 : 1) + ([0, 1, 2, 4][descriptor & 3] ?? 0)
  const field = descriptor >> 6
  if (frame.length < at + 8) return unknownSize
  let size = unknownSize
  if (field === 0 && single) size = frame.readUInt8(at)
  else if (field === 1) size = frame.readUInt16LE(at) + 256
  else if (field === 2) size = frame.readUInt32LE(at)
  return Math.min(size, most) + 64
}
/** Of frames that do not say. */
const unknownSize = 64 * 1024

/** Cursor of the varint reader: one process decodes one batch at a time. */
let cursor = 0

/** A zigzag varint at the cursor; NaN if it does not end before `end`. Exact below 2^53. */
function readVarint(bytes: Uint8Array, end: number): number {
  if (cursor >= end) return NaN
  let byte = bytes[cursor++] ?? 0
  let value = byte & 0x7f
  if (byte >= 0x80) {
    for (let shift = 7; shift < 28; shift += 7) {
      if (cursor >= end) return NaN
      byte = bytes[cursor++] ?? 0
      value |= (byte & 0x7f) << shift
      if (byte < 0x80) return (value >>> 1) ^ -(value & 1)
    }
    return readLong(bytes, end, value)
  }
  return (value >>> 1) ^ -(value & 1)
}

/** The rest of a varint of more than four bytes. */
function readLong(bytes: Uint8Array, end: number, low: number): number {
  let value = BigInt(low)
  for (let shift = 28n; shift < 70n; shift += 7n) {
    if (cursor >= end) return NaN
    const byte = bytes[cursor++] ?? 0
    value |= BigInt(byte & 0x7f) << shift
    if (byte < 0x80) return Number(BigInt.asIntN(64, (value >> 1n) ^ -(value & 1n)))
  }
  return NaN
}

class Columns {
  readonly #at: TopicPartition
  readonly #bytes: Buffer
  readonly #from: number
  readonly #offsets: Float64Array
  readonly #bounds: Int32Array
  #count = 0

  constructor(at: TopicPartition, bytes: Buffer, capacity: number, from: number) {
    this.#at = at
    this.#bytes = bytes
    this.#from = from
    this.#offsets = new Float64Array(capacity)
    this.#bounds = new Int32Array(capacity * 4)
  }

  /** Indexes the records in [start, end) of the arena, which belong to the batch whose header is at `header` of `headers`. */
  index(headers: Buffer, header: number, start: number, end: number): void {
    const base = readOffset(headers, header)
    const last = headers.readInt32BE(header + At.lastDelta)
    const bytes = this.#bytes
    const offsets = this.#offsets
    const bounds = this.#bounds
    cursor = start
    for (let left = headers.readInt32BE(header + At.count); left > 0; left--) {
      const size = readVarint(bytes, end)
      const recordEnd = cursor + size
      if (!(size >= smallestRecord - 1 && recordEnd <= end)) throw damaged(this.#at, base, 'a record’s length is wrong')
      cursor++ // attributes, unused in this format
      readVarint(bytes, recordEnd)
      const delta = readVarint(bytes, recordEnd)
      if (!(delta >= 0 && delta <= last)) throw damaged(this.#at, base, 'a record’s offset is wrong')
      const key = readVarint(bytes, recordEnd)
      const keyStart = key < 0 ? -1 : cursor
      if (key > 0) cursor += key
      const keyEnd = key < 0 ? -1 : cursor
      const value = readVarint(bytes, recordEnd)
      const valueStart = value < 0 ? -1 : cursor
      if (value > 0) cursor += value
      if (!(key >= -1 && value >= -1 && cursor <= recordEnd))
        throw damaged(this.#at, base, 'a record’s parts overrun it')
      const offset = base + delta
      if (offset >= this.#from) {
        const i = this.#count++
        offsets[i] = offset
        bounds[i * 4] = keyStart
        bounds[i * 4 + 1] = keyEnd
        bounds[i * 4 + 2] = valueStart
        bounds[i * 4 + 3] = value < 0 ? -1 : cursor
      }
      cursor = recordEnd
    }
    if (cursor !== end) throw damaged(this.#at, base, 'bytes follow the last record')
  }

  batch(next: number, end: number): FetchedBatch {
    return {
      topic: this.#at.topic,
      partition: this.#at.partition,
      bytes: this.#bytes,
      count: this.#count,
      offsets: this.#offsets,
      bounds: this.#bounds,
      next,
      end: Math.max(end, next),
    }
  }
}

function place(at: TopicPartition): string {
  return `topic ${at.topic}, partition ${at.partition}`
}

export function damaged(at: TopicPartition, offset: number, observed: string): Failure {
  return new Failure('LOG_DAMAGED', {
    object: offset < 0 ? place(at) : `${place(at)}, offset ${offset}`,
    observed,
    effect: 'nothing after it is applied',
  })
}

/** `offset` is asked for, and what is there goes from `low` to `end` (undefined: could not be asked). */
export function logGap(at: TopicPartition, offset: number, low: number | undefined, end: number | undefined): Failure {
  const removed = low === undefined || offset < low
  return new Failure('LOG_GAP', {
    object: place(at),
    observed: `offset ${offset} is wanted, ${low ?? '?'} to ${end ?? '?'} are there`,
    needed: 'every record that is not applied yet',
    effect: 'nothing more is applied',
    next: removed
      ? 'Retention or somebody removed records before they were applied: copy again under another pipeline name, with a retention longer than any stop'
      : 'The log lost records that it had, as after an unclean election: bring the newer replica back, or copy again under another pipeline name',
  })
}

function overCap(at: TopicPartition, most: number): Failure {
  return new Failure('LIMIT_EXCEEDED', {
    object: place(at),
    key: 'log.maxMessageBytes',
    observed: `a batch decompresses to more than ${most} bytes`,
    effect: 'nothing after it is applied',
    next: 'If log.maxMessageBytes was lowered, raise it again; else find out who writes to this topic',
  })
}
