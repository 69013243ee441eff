import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import fc from 'fast-check'
import { asBuffer, At, Attribute, checksum, writeOffset } from '../../../src/change-log/batch-layout.ts'
import type { EncodedBatch, FetchedBatch } from '../../../src/change-log/change-log.ts'
import { readBatches } from '../../../src/change-log/read-batches.ts'
import { batchBuilder, release, stamp, varintSize, writeVarint } from '../../../src/change-log/record-batch.ts'
import { Failure, type Facts } from '../../../src/errors.ts'

const here = { topic: 't', partition: 0 }
type Pair = readonly [Uint8Array | null, Uint8Array | null]

function build(pairs: readonly Pair[], { base = 0, compress = false, time = 1_700_000_000_000 } = {}): Buffer {
  const batch = encode(pairs, { compress, time })
  const bytes = Buffer.from(batch.bytes)
  writeOffset(bytes, base, 0)
  release(batch)
  return bytes
}
function encode(pairs: readonly Pair[], { compress = false, time = 1_700_000_000_000 } = {}): EncodedBatch {
  const builder = batchBuilder({ compress })
  pairs.forEach(([key, value], i) => {
    const bytes = Buffer.concat([key ?? Buffer.alloc(0), value ?? Buffer.alloc(0)])
    const middle = key?.length ?? 0
    builder.add(bytes, key ? 0 : -1, key ? middle : -1, value ? middle : -1, value ? bytes.length : -1, time - i)
  })
  const batch = builder.finish('t', 0)
  stamp(batch, 7n, 1, 99)
  return batch
}
function pairsOf(batch: FetchedBatch): Pair[] {
  const part = (start: number, end: number): Uint8Array | null =>
    start < 0 ? null : new Uint8Array(batch.bytes.subarray(start, end))
  return Array.from({ length: batch.count }, (_, i) => {
    const [a = 0, b = 0, c = 0, d = 0] = batch.bounds.subarray(i * 4, i * 4 + 4)
    return [part(a, b), part(c, d)]
  })
}
const code = (wanted: string) => (error: unknown) => error instanceof Failure && error.code === wanted

const cell = fc.option(fc.uint8Array({ maxLength: 300 }), { nil: null })
const pairs = fc.array(fc.tuple(cell, cell), { minLength: 1, maxLength: 40 })

test('what is built is read again, packed or not, from any offset', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(pairs, fc.boolean()), { minLength: 1, maxLength: 4 }),
      fc.nat(50),
      (batches, skip) => {
        let base = 5
        const sections = batches.map(([each, compress]) => {
          const bytes = build(each, { base, compress })
          base += each.length
          return bytes
        })
        const all = batches.flatMap(([each]) => each)
        const from = 5 + Math.min(skip, all.length)
        const read = readBatches(here, Buffer.concat(sections), from, 1000)
        assert.deepEqual(pairsOf(read), all.slice(from - 5))
        assert.deepEqual(
          [...read.offsets.subarray(0, read.count)],
          all.slice(from - 5).map((_, i) => from + i),
        )
        assert.equal(read.next, base)
        assert.equal(read.end, 1000)
      },
    ),
  )
})

test('an unpacked section is not copied', () => {
  const bytes = build([[Buffer.from('k'), Buffer.from('v')]])
  assert.equal(readBatches(here, bytes, 0, 1).bytes.buffer, bytes.buffer)
})

test('the client library reads what we build', async () => {
  const require = createRequire(import.meta.url)
  const Decoder = require('kafkajs/src/protocol/decoder')
  const decode = require('kafkajs/src/protocol/recordBatch/v0/decoder')
  const builder = batchBuilder({ compress: false })
  builder.add(Buffer.from('kv'), 0, 1, 1, 2, 1_700_000_000_000)
  builder.add(Buffer.from('kv'), -1, -1, 1, 2, 1_800_000_000_000)
  builder.add(Buffer.from('kv'), 0, 1, -1, -1, 1_600_000_000_000)
  builder.addControl('barrier', Buffer.from('id'), Buffer.from('body'), 1_700_000_000_001)
  const batch = builder.finish('t', 0)
  stamp(batch, 12345678901n, 3, 42)
  const read = await decode(new Decoder(asBuffer(batch.bytes)))
  assert.equal(read.producerId, '12345678901')
  assert.equal(read.producerEpoch, 3)
  assert.equal(read.firstSequence, 42)
  assert.equal(read.lastOffsetDelta, 3)
  assert.equal(read.maxTimestamp, '1800000000000')
  const text = (bytes: Buffer | null): string | null => bytes && bytes.toString()
  const records: { key: Buffer | null; value: Buffer | null; timestamp: string; headers: Record<string, Buffer> }[] =
    read.records
  assert.deepEqual(
    records.map((each) => [text(each.key), text(each.value), each.timestamp, text(each.headers['crossfade'] ?? null)]),
    [
      ['k', 'v', '1700000000000', null],
      [null, 'v', '1800000000000', null],
      ['k', null, '1600000000000', null],
      ['id', 'body', '1700000000001', 'barrier'],
    ],
  )
})

test('varints of any number', () => {
  fc.assert(
    fc.property(fc.integer({ min: -(2 ** 51), max: 2 ** 51 }), (value) => {
      const bytes = Buffer.alloc(10)
      const size = writeVarint(bytes, 0, value)
      assert.equal(varintSize(value), size)
      let zigzag = 0n
      for (let i = 0; i < size; i++) zigzag |= BigInt((bytes[i] ?? 0) & 0x7f) << BigInt(7 * i)
      assert.equal(Number((zigzag >> 1n) ^ -(zigzag & 1n)), value)
    }),
  )
})

test('a handed-over batch is not touched until it is released', () => {
  const builder = batchBuilder({ compress: false })
  builder.add(Buffer.from('first'), -1, -1, 0, 5, 0)
  const first = builder.finish('t', 0)
  const before = Buffer.from(first.bytes)
  builder.add(Buffer.from('second'), -1, -1, 0, 6, 0)
  const second = builder.finish('t', 0)
  assert.deepEqual(Buffer.from(first.bytes), before)
  release(first)
  release(first)
  const other = batchBuilder({ compress: false })
  other.add(Buffer.from('third'), -1, -1, 0, 5, 0)
  const third = other.finish('t', 0)
  const another = batchBuilder({ compress: false })
  another.add(Buffer.from('fourth'), -1, -1, 0, 6, 0)
  assert.notEqual(another.finish('t', 0).bytes.buffer, third.bytes.buffer)
  assert.notEqual(second.bytes.buffer, third.bytes.buffer)
})

test('a single record above the limit is an error that names topic and size', () => {
  const builder = batchBuilder({ compress: false })
  const large = Buffer.alloc(9 * 1024 * 1024)
  builder.add(large, -1, -1, 0, large.length, 0)
  assert.throws(
    () => builder.finish('shop.public.blobs', 0),
    (error) => {
      assert.ok(error instanceof Failure)
      assert.equal(error.code, 'RECORD_TOO_LARGE')
      assert.match(error.message, /shop\.public\.blobs.*9437\d\d\d bytes/)
      return true
    },
  )
  builder.add(large, -1, -1, 0, 10, 0)
  assert.equal(builder.finish('t', 0).count, 1)
})

test('the limit is what is configured, and the error names a value that would do', () => {
  const large = Buffer.alloc(70 * 2 ** 20)
  const finish = (messageBytes: number, compress: boolean, size: number): number => {
    const builder = batchBuilder({ compress, messageBytes })
    builder.add(large, -1, -1, 0, size, 0)
    return builder.finish('t', 0).bytes.length
  }
  const told = (facts: Partial<Facts>) => (error: unknown) => {
    assert.ok(error instanceof Failure && error.code === 'RECORD_TOO_LARGE', String(error))
    assert.deepEqual({ ...error.facts, ...facts }, error.facts)
    return true
  }
  const next = (value: string): Partial<Facts> => ({
    key: 'log.maxMessageBytes',
    next: `Set log.maxMessageBytes to ${value} and start again: the pipeline goes on from there`,
  })
  assert.throws(() => finish(2 ** 20, false, 2 ** 20), told(next('2MiB')))
  assert.ok(finish(2 ** 21, false, 2 ** 20) > 2 ** 20)
  assert.throws(() => finish(2 ** 23, false, 40 * 2 ** 20), told(next('64MiB')))
  assert.ok(finish(2 ** 26, false, 40 * 2 ** 20) > 2 ** 25)
  assert.ok(finish(2 ** 20, true, 40 * 2 ** 20) < 2 ** 20, 'what counts is what the log gets')
  // What would not be read again is not written, however small it gets.
  assert.throws(() => finish(2 ** 23, true, large.length), told(next('128MiB')))
  assert.ok(finish(2 ** 27, true, large.length) < 2 ** 20)
})

test('damage is found, and nothing is read beyond the section', () => {
  fc.assert(
    fc.property(pairs, fc.boolean(), fc.nat(), fc.integer({ min: 1, max: 255 }), (each, compress, at, flip) => {
      const bytes = build(each, { compress, base: 3 })
      const place = At.attributes + (at % (bytes.length - At.attributes))
      bytes[place] = (bytes[place] ?? 0) ^ flip
      assert.throws(() => readBatches(here, bytes, 0, 100), code('LOG_DAMAGED'))
    }),
  )
})

test('hostile batches with a right checksum are refused', () => {
  fc.assert(
    fc.property(pairs, fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 5 }), (each, changes) => {
      const bytes = build(each, { base: 3 })
      for (const [at, value] of changes) bytes[At.attributes + (at % (bytes.length - At.attributes))] = value
      bytes.writeUInt32BE(checksum(bytes, 0, bytes.length), At.crc)
      try {
        const read = readBatches(here, bytes, 0, 100)
        for (let i = 0; i < read.count * 4; i++) assert.ok((read.bounds[i] ?? 0) <= bytes.length)
      } catch (error) {
        assert.ok(error instanceof Failure, String(error))
      }
    }),
  )
})

test('a batch that is cut off waits for the next reading', () => {
  const whole = build([[null, Buffer.from('a')]])
  const cut = build([[null, Buffer.from('b')]], { base: 1 }).subarray(0, 66)
  assert.deepEqual(readBatches(here, Buffer.concat([whole, cut]), 0, 2).next, 1)
  assert.deepEqual(readBatches(here, Buffer.concat([whole, cut.subarray(0, 20)]), 0, 2).count, 1)
  assert.equal(readBatches(here, cut, 1, 2).next, 1)
})

test('offsets have gaps: reading goes on after the last one of a batch', () => {
  const bytes = build([
    [null, Buffer.from('a')],
    [null, Buffer.from('b')],
  ])
  bytes.writeInt32BE(9, At.lastDelta)
  bytes.writeUInt32BE(checksum(bytes, 0, bytes.length), At.crc)
  assert.equal(readBatches(here, bytes, 0, 10).next, 10)
  assert.deepEqual(readBatches(here, bytes, 5, 10).count, 0)
  assert.deepEqual(readBatches(here, bytes, 5, 10).next, 10)
})

test('small batches that decompress to very much are read a few at a time', () => {
  const zeros = Buffer.alloc(10 * 2 ** 20)
  const section = Buffer.concat(
    Array.from({ length: 9 }, (_, i) => {
      const builder = batchBuilder({ compress: true })
      builder.add(zeros, -1, -1, 0, zeros.length - i, 0)
      const batch = builder.finish('t', 0)
      writeOffset(asBuffer(batch.bytes), i, 0)
      stamp(batch, -1n, -1, -1)
      return batch.bytes
    }),
  )
  const sizes: number[] = []
  let pulls = 0
  for (let next = 0; next < 9; pulls++) {
    const read = readBatches(here, section, next, 9)
    assert.ok(read.bytes.length < 32 * 2 ** 20, `${read.bytes.length} bytes`)
    for (let i = 0; i < read.count; i++) {
      assert.equal(read.offsets[i], sizes.length)
      sizes.push((read.bounds[4 * i + 3] ?? 0) - (read.bounds[4 * i + 2] ?? 0))
    }
    next = read.next
  }
  assert.equal(pulls, 5)
  assert.deepEqual(
    sizes,
    sizes.map((_, i) => zeros.length - i),
  )
})

test('batches of others’ control records are passed over', () => {
  const bytes = build([[Buffer.from('marker'), Buffer.alloc(6)]])
  bytes.writeInt16BE(Attribute.control | Attribute.transactional, At.attributes)
  bytes.writeUInt32BE(checksum(bytes, 0, bytes.length), At.crc)
  const read = readBatches(here, bytes, 0, 1)
  assert.deepEqual([read.count, read.next], [0, 1])
})

test('a decompression bomb is stopped at the cap; gzip is read; other codecs are named', () => {
  const packedAs = (codec: number, records: Buffer): Buffer => {
    const bytes = Buffer.concat([build([[null, Buffer.from('a')]]).subarray(0, At.records), records])
    bytes.writeInt16BE(codec, At.attributes)
    bytes.writeInt32BE(bytes.length - 12, At.length)
    bytes.writeUInt32BE(checksum(bytes, 0, bytes.length), At.crc)
    return bytes
  }
  const bomb = Buffer.alloc(65 * 1024 * 1024)
  assert.throws(() => readBatches(here, packedAs(4, zstdCompressSync(bomb)), 0, 1), code('LIMIT_EXCEEDED'))
  assert.throws(() => readBatches(here, packedAs(1, gzipSync(bomb)), 0, 1), code('LIMIT_EXCEEDED'))
  assert.throws(() => readBatches(here, packedAs(2, Buffer.from('snappy')), 0, 1), code('UNSUPPORTED'))
  assert.throws(() => readBatches(here, packedAs(4, Buffer.from('junk')), 0, 1), code('LOG_DAMAGED'))
  const plain = build([[null, Buffer.from('a')]]).subarray(At.records)
  assert.deepEqual(pairsOf(readBatches(here, packedAs(1, gzipSync(plain)), 0, 1)), [[null, new Uint8Array([97])]])
})
