import type { Offset } from '../model.ts'
import { readOffset } from './batch-layout.ts'
import type { EncodedBatch } from './change-log.ts'
import type { KafkaRequest } from './kafka-client.ts'

/** The few requests we write ourselves; for the others the library's own are used. Layouts: https://kafka.apache.org/protocol */
export type BrokerAt = { readonly id: number; readonly host: string; readonly port: number }
type PartitionLeader = { readonly partition: number; readonly leader: number; readonly error: number }
type TopicFound = {
  readonly name: string
  readonly id: string
  readonly error: number
  readonly partitions: readonly PartitionLeader[]
}
export type Metadata = { readonly brokers: readonly BrokerAt[]; readonly topics: readonly TopicFound[] }
type ProduceAnswer = {
  readonly topic: string
  readonly partition: number
  readonly error: number
  readonly base: number
}
export type FetchAnswer = {
  readonly topic: string
  readonly partition: number
  readonly error: number
  readonly end: number
  readonly section: Buffer
}

/** Reads an answer from front to back; a RangeError of Buffer is a malformed answer. */
class Reader {
  readonly #bytes: Buffer
  #at = 0
  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }
  int16(): number {
    this.#at += 2
    return this.#bytes.readInt16BE(this.#at - 2)
  }
  int32(): number {
    this.#at += 4
    return this.#bytes.readInt32BE(this.#at - 4)
  }
  offset(): number {
    this.#at += 8
    return readOffset(this.#bytes, this.#at - 8)
  }
  int64(): bigint {
    this.#at += 8
    return this.#bytes.readBigInt64BE(this.#at - 8)
  }
  uvarint(): number {
    let value = 0
    for (let shift = 0; shift < 35; shift += 7) {
      const byte = this.#bytes.readUInt8(this.#at++)
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) return value
    }
    throw new RangeError('a length is malformed')
  }
  bytes(length: number): Buffer {
    const start = this.#at
    if (length < 0 || start + length > this.#bytes.length) throw new RangeError('a length is beyond the answer')
    this.#at += length
    return this.#bytes.subarray(start, start + length)
  }
  string(): string {
    return this.bytes(Math.max(0, this.int16())).toString()
  }
  compactString(): string {
    return this.bytes(Math.max(0, this.uvarint() - 1)).toString()
  }
  tags(): void {
    for (let left = this.uvarint(); left > 0; left--) {
      this.uvarint()
      this.bytes(this.uvarint())
    }
  }
  many<T>(count: number, read: () => T): T[] {
    if (count > this.#bytes.length) throw new RangeError('a count is beyond the answer')
    return Array.from({ length: Math.max(0, count) }, read)
  }
}

class Writer {
  readonly #parts: Buffer[] = []
  int8(value: number): this {
    return this.bytes(Buffer.from([value & 0xff]))
  }
  int16(value: number): this {
    return this.bytes(Buffer.from([(value >> 8) & 0xff, value & 0xff]))
  }
  int32(value: number): this {
    const bytes = Buffer.allocUnsafe(4)
    bytes.writeInt32BE(value)
    return this.bytes(bytes)
  }
  int64(value: number): this {
    const bytes = Buffer.allocUnsafe(8)
    bytes.writeBigInt64BE(BigInt(value))
    return this.bytes(bytes)
  }
  uvarint(value: number): this {
    const bytes: number[] = []
    for (; value >= 0x80; value = Math.floor(value / 0x80)) bytes.push((value % 0x80) | 0x80)
    return this.bytes(Buffer.from([...bytes, value]))
  }
  string(text: string): this {
    const bytes = Buffer.from(text)
    return this.int16(bytes.length).bytes(bytes)
  }
  bytes(bytes: Uint8Array): this {
    this.#parts.push(Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length))
    return this
  }
  done(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

/** A flexible version: its header ends with tags, which the library does not write, so they stand first in the body. */
export function metadataRequest(topics: readonly string[]): KafkaRequest {
  const out = new Writer().uvarint(0).uvarint(topics.length + 1)
  for (const topic of topics) {
    const name = Buffer.from(topic)
    out
      .bytes(Buffer.alloc(16))
      .uvarint(name.length + 1)
      .bytes(name)
      .uvarint(0)
  }
  return { name: 'Metadata', key: 3, version: 10, body: out.int8(0).int8(0).int8(0).uvarint(0).done() }
}

export function metadataAnswer(bytes: Buffer): Metadata {
  const from = new Reader(bytes)
  from.tags()
  from.int32()
  const brokers = from.many(from.uvarint() - 1, () => {
    const broker = { id: from.int32(), host: from.compactString(), port: from.int32() }
    from.compactString()
    from.tags()
    return broker
  })
  from.compactString()
  from.int32()
  const topics = from.many(from.uvarint() - 1, () => {
    const error = from.int16()
    const name = from.compactString()
    const id = from.bytes(16).toString('base64url')
    from.bytes(1)
    const partitions = from.many(from.uvarint() - 1, () => {
      const found = { error: from.int16(), partition: from.int32(), leader: from.int32() }
      from.int32()
      for (let list = 0; list < 3; list++) from.many(from.uvarint() - 1, () => from.int32())
      from.tags()
      return found
    })
    from.int32()
    from.tags()
    return { name, id, error, partitions }
  })
  return { brokers, topics }
}

export function producerIdRequest(): KafkaRequest {
  return { name: 'InitProducerId', key: 22, version: 1, body: new Writer().int16(-1).int32(60_000).done() }
}

export function producerIdAnswer(bytes: Buffer): {
  readonly error: number
  readonly id: bigint
  readonly epoch: number
} {
  const from = new Reader(bytes)
  from.int32()
  return { error: from.int16(), id: from.int64(), epoch: from.int16() }
}

/** Sets one setting of topics and leaves the others as they are, which the library's own request does not. */
export function alterTopicsRequest(topics: readonly string[], name: string, value: string): KafkaRequest {
  const out = new Writer().int32(topics.length)
  for (const topic of topics) out.int8(2).string(topic).int32(1).string(name).int8(0).string(value)
  return { name: 'IncrementalAlterConfigs', key: 44, version: 0, body: out.int8(0).done() }
}

export function alterTopicsAnswer(
  bytes: Buffer,
): { readonly topic: string; readonly error: number; readonly message: string }[] {
  const from = new Reader(bytes)
  from.int32()
  return from.many(from.int32(), () => {
    const error = from.int16()
    const message = from.string()
    from.bytes(1)
    return { topic: from.string(), error, message }
  })
}

/** To be acknowledged by all in-sync replicas. */
export function produceRequest(batches: readonly EncodedBatch[], timeout: number): KafkaRequest {
  const out = new Writer().int16(-1).int16(-1).int32(timeout)
  writeByTopic(out, batches, (batch) => out.int32(batch.partition).int32(batch.bytes.length).bytes(batch.bytes))
  return { name: 'Produce', key: 0, version: 7, body: out.done() }
}

export function produceAnswer(bytes: Buffer): ProduceAnswer[] {
  const from = new Reader(bytes)
  return readByTopic(from, (topic) => {
    const answer = { topic, partition: from.int32(), error: from.int16(), base: from.offset() }
    from.bytes(16)
    return answer
  })
}

export function fetchRequest(wanted: readonly Offset[], maxWait: number, maxBytes: number, each: number): KafkaRequest {
  const out = new Writer().int32(-1).int32(maxWait).int32(1).int32(maxBytes).int8(0).int32(0).int32(-1)
  writeByTopic(out, wanted, (at) => out.int32(at.partition).int32(-1).int64(at.offset).int64(-1).int32(each))
  return { name: 'Fetch', key: 1, version: 11, body: out.int32(0).int16(0).done() }
}

export function fetchAnswer(bytes: Buffer): { readonly error: number; readonly partitions: FetchAnswer[] } {
  const from = new Reader(bytes)
  from.int32()
  const error = from.int16()
  from.int32()
  const partitions = readByTopic(from, (topic) => {
    const partition = from.int32()
    const failed = from.int16()
    const end = from.offset()
    from.bytes(16)
    from.many(from.int32(), () => from.bytes(16))
    from.int32()
    return { topic, partition, error: failed, end, section: from.bytes(Math.max(0, from.int32())) }
  })
  return { error, partitions }
}

/** `from`: the first offset still there, or the one after the last. */
export function offsetsRequest(
  wanted: readonly { readonly topic: string; readonly partition: number }[],
  from: 'low' | 'end',
): KafkaRequest {
  const out = new Writer().int32(-1).int8(0)
  writeByTopic(out, wanted, (at) => out.int32(at.partition).int64(from === 'low' ? -2 : -1))
  return { name: 'ListOffsets', key: 2, version: 2, body: out.done() }
}

export function offsetsAnswer(bytes: Buffer): (Offset & { readonly error: number })[] {
  const from = new Reader(bytes)
  from.int32()
  return readByTopic(from, (topic) => {
    const partition = from.int32()
    const error = from.int16()
    from.int64()
    return { topic, partition, error, offset: from.offset() }
  })
}

function writeByTopic<T extends { readonly topic: string }>(
  out: Writer,
  all: readonly T[],
  write: (each: T) => void,
): void {
  const topics = Map.groupBy(all, (each) => each.topic)
  out.int32(topics.size)
  for (const [topic, list] of topics) {
    out.string(topic).int32(list.length)
    for (const each of list) write(each)
  }
}

function readByTopic<T>(from: Reader, read: (topic: string) => T): T[] {
  return from
    .many(from.int32(), () => {
      const topic = from.string()
      return from.many(from.int32(), () => read(topic))
    })
    .flat()
}

/** Errors that pass: leaders move, brokers start, replicas fall behind. */
const passing: ReadonlySet<number> = new Set([
  2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 19, 20, 56, 72, 74, 75, 76, 77, 78, 89, 100, 103,
])
export function passes(error: number): boolean {
  return passing.has(error)
}
export const KafkaError = {
  outOfRange: 1,
  unknownTopic: 3,
  tooLarge: 10,
  batchTooLarge: 18,
  fewReplicas: 19,
  fewReplicasAfter: 20,
  topicRights: 29,
  clusterRights: 31,
  sequence: 45,
  duplicate: 46,
  producerEpoch: 47,
  producerId: 59,
  fenced: 90,
} as const
