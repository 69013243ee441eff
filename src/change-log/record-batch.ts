import { constants, zstdCompressSync } from 'node:zlib'
import { Failure } from '../errors.ts'
import {
  asBuffer,
  At,
  Attribute,
  batchMargin,
  checksum,
  defaultMessageBytes,
  largestMessageBytes,
  largestDecompressed,
} from './batch-layout.ts'
import { lendBuffer, returnBuffer } from './buffer-pool.ts'
import type { EncodedBatch } from './change-log.ts'

/** The open batch of one partition. */
export interface BatchBuilder {
  readonly count: number
  /** Bytes so far, uncompressed, with the header. */
  readonly size: number
  /** Appends a record whose key is bytes[keyStart, keyEnd); a start of -1: null. `timestamp`: ms since 1970. */
  add(
    bytes: Uint8Array,
    keyStart: number,
    keyEnd: number,
    valueStart: number,
    valueEnd: number,
    timestamp: number,
  ): void
  /** Appends a record with the header `crossfade` = kind, by which other readers know to skip it. */
  addControl(kind: string, key: Uint8Array, value: Uint8Array, timestamp: number): void
  /** Hands the records over and starts anew; at least one. RECORD_TOO_LARGE if a single record is over the limit: it is gone then. */
  finish(topic: string, partition: number): EncodedBatch
}

/** Smaller batches are not compressed: it would cost more than it saves. */
const worthCompressing = 4096
const firstCapacity = 4096
const zstd = { params: { [constants.ZSTD_c_compressionLevel]: 1 } }
const headerName = Buffer.from('crossfade')
const owned = new WeakMap<EncodedBatch, Buffer>()

/** `messageBytes`: the largest batch the log takes; 8 MiB if absent. */
export function batchBuilder({
  compress,
  messageBytes = defaultMessageBytes,
}: {
  readonly compress: boolean
  readonly messageBytes?: number | undefined
}): BatchBuilder {
  return new Builder(compress, messageBytes)
}

/** Gives a batch's memory back once `append` has settled. Optional, and a repeat does nothing; the batch must not be used afterwards. */
export function release(batch: EncodedBatch): void {
  const buffer = owned.get(batch)
  if (buffer === undefined) return
  owned.delete(batch)
  returnBuffer(buffer)
}

/** Writes what the log decides into a batch: producer (-1: none), its epoch, the sequence of the first record, and the checksum. */
export function stamp(batch: EncodedBatch, producerId: bigint, epoch: number, sequence: number): void {
  const bytes = asBuffer(batch.bytes)
  bytes.writeBigInt64BE(producerId, At.producerId)
  bytes.writeInt16BE(epoch, At.producerEpoch)
  bytes.writeInt32BE(sequence, At.sequence)
  bytes.writeUInt32BE(checksum(bytes, 0, bytes.length), At.crc)
}

class Builder implements BatchBuilder {
  readonly #compress: boolean
  readonly #messageBytes: number
  #bytes: Buffer | undefined
  #at: number = At.records
  #count = 0
  #first = 0
  #latest = 0

  constructor(compress: boolean, messageBytes: number) {
    this.#compress = compress
    this.#messageBytes = messageBytes
  }

  get count(): number {
    return this.#count
  }

  get size(): number {
    return this.#at
  }

  add(
    bytes: Uint8Array,
    keyStart: number,
    keyEnd: number,
    valueStart: number,
    valueEnd: number,
    timestamp: number,
  ): void {
    this.#record(bytes, keyStart, keyEnd, bytes, valueStart, valueEnd, timestamp, undefined)
  }

  addControl(kind: string, key: Uint8Array, value: Uint8Array, timestamp: number): void {
    this.#record(key, 0, key.length, value, 0, value.length, timestamp, Buffer.from(kind))
  }

  finish(topic: string, partition: number): EncodedBatch {
    const count = this.#count
    const whole = this.#bytes
    if (whole === undefined || count === 0) throw new RangeError('a batch needs a record')
    let owner = whole
    let size = this.#at
    this.#header(whole)
    this.#bytes = undefined
    this.#at = At.records
    this.#count = 0
    if (this.#compress && size > worthCompressing) {
      const packed = zstdCompressSync(whole.subarray(At.records, size), zstd)
      if (At.records + packed.length < size) {
        size = At.records + packed.length
        owner = lendBuffer(size)
        whole.copy(owner, 0, 0, At.records)
        packed.copy(owner, At.records)
        owner.writeInt16BE(Attribute.zstd, At.attributes)
        returnBuffer(whole)
      }
    }
    owner.writeInt32BE(size - At.leaderEpoch, At.length)
    if (count === 1 && size > this.#messageBytes - batchMargin) {
      returnBuffer(owner)
      throw tooLarge(topic, size, this.#messageBytes - batchMargin)
    }
    const batch = { topic, partition, bytes: owner.subarray(0, size), count }
    owned.set(batch, owner)
    return batch
  }

  #header(bytes: Buffer): void {
    bytes.fill(0, 0, At.records)
    bytes.writeInt32BE(-1, At.leaderEpoch)
    bytes[At.magic] = 2
    bytes.writeInt32BE(this.#count - 1, At.lastDelta)
    bytes.writeBigInt64BE(BigInt(this.#first), At.baseTimestamp)
    bytes.writeBigInt64BE(BigInt(this.#latest), At.maxTimestamp)
    bytes.writeInt32BE(this.#count, At.count)
  }

  #record(
    keyBytes: Uint8Array,
    keyStart: number,
    keyEnd: number,
    valueBytes: Uint8Array,
    valueStart: number,
    valueEnd: number,
    timestamp: number,
    kind: Buffer | undefined,
  ): void {
    if (this.#count === 0) this.#first = this.#latest = timestamp
    else if (timestamp > this.#latest) this.#latest = timestamp
    const since = timestamp - this.#first
    const key = keyStart < 0 ? -1 : keyEnd - keyStart
    const value = valueStart < 0 ? -1 : valueEnd - valueStart
    let size = 2 + varintSize(since) + varintSize(this.#count) + varintSize(key) + varintSize(value)
    if (key > 0) size += key
    if (value > 0) size += value
    if (kind !== undefined) {
      size += varintSize(headerName.length) + headerName.length + varintSize(kind.length) + kind.length
    }
    const bytes = this.#reserve(size + 5)
    let at = writeVarint(bytes, this.#at, size)
    bytes[at++] = 0
    at = writeVarint(bytes, at, since)
    at = writeVarint(bytes, at, this.#count)
    at = writeVarint(bytes, at, key)
    if (key > 0) at = copy(keyBytes, keyStart, keyEnd, bytes, at)
    at = writeVarint(bytes, at, value)
    if (value > 0) at = copy(valueBytes, valueStart, valueEnd, bytes, at)
    if (kind === undefined) bytes[at++] = 0
    else {
      at = writeVarint(bytes, at, 1)
      at = writeVarint(bytes, at, headerName.length)
      at = copy(headerName, 0, headerName.length, bytes, at)
      at = writeVarint(bytes, at, kind.length)
      at = copy(kind, 0, kind.length, bytes, at)
    }
    this.#at = at
    this.#count++
  }

  #reserve(more: number): Buffer {
    const bytes = (this.#bytes ??= lendBuffer(firstCapacity))
    const needed = this.#at + more
    if (needed <= bytes.length) return bytes
    const most = largestDecompressed(this.#messageBytes)
    if (needed > most) throw tooLarge('', needed, most)
    const larger = lendBuffer(Math.max(needed, bytes.length * 2))
    bytes.copy(larger, 0, 0, this.#at)
    returnBuffer(bytes)
    this.#bytes = larger
    return larger
  }
}

/** `most`: what log.maxMessageBytes allows now; the remedy names a value of it that would do. */
export function tooLarge(topic: string, size: number, most: number): Failure {
  const enough = 2 ** Math.max(20, Math.ceil(Math.log2(size + batchMargin)))
  return new Failure('RECORD_TOO_LARGE', {
    object: topic === '' ? 'a topic' : `topic ${topic}`,
    key: 'log.maxMessageBytes',
    observed: `a record of ${size} bytes`,
    needed: `at most ${most} bytes, by log.maxMessageBytes`,
    effect: 'it and what follows are not published, and stay at the source',
    next:
      enough > largestMessageBytes
        ? 'Make the value smaller at the source, or start a new pipeline without the table'
        : `Set log.maxMessageBytes to ${enough / 2 ** 20}MiB and start again: the pipeline goes on from there`,
  })
}

/** Small copies by a loop: a call into the runtime costs more than forty bytes do. */
function copy(from: Uint8Array, start: number, end: number, to: Buffer, at: number): number {
  if (end - start < 40) {
    for (let i = start; i < end; i++) to[at++] = from[i] ?? 0
    return at
  }
  asBuffer(from).copy(to, at, start, end) // no view for each record
  return at + end - start
}

/** Bytes of a number below 2^52 as zigzag varint. */
export function varintSize(value: number): number {
  if (value >= -0x4000_0000 && value < 0x4000_0000) {
    const zigzag = ((value << 1) ^ (value >> 31)) >>> 0
    return zigzag < 0x80 ? 1 : zigzag < 0x4000 ? 2 : zigzag < 0x20_0000 ? 3 : zigzag < 0x1000_0000 ? 4 : 5
  }
  let size = 1
  for (let rest = zigzagOf(value); rest >= 0x80; rest = Math.floor(rest / 0x80)) size++
  return size
}

export function writeVarint(bytes: Uint8Array, at: number, value: number): number {
  if (value >= -0x4000_0000 && value < 0x4000_0000) {
    let zigzag = ((value << 1) ^ (value >> 31)) >>> 0
    while (zigzag >= 0x80) {
      bytes[at++] = (zigzag & 0x7f) | 0x80
      zigzag >>>= 7
    }
    bytes[at++] = zigzag
    return at
  }
  let rest = zigzagOf(value)
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes[at++] = (rest % 0x80) | 0x80
  bytes[at++] = rest
  return at
}

function zigzagOf(value: number): number {
  return value < 0 ? -2 * value - 1 : 2 * value
}
