import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Barrier, ControlRecord, Effect, Position, TableSchema } from '../../../src/model.ts'
import { decodeControl, encodeControl } from '../../../src/avro/control.ts'

const schema: TableSchema = {
  table: { schema: 'public', name: 'orders' },
  version: 3,
  columns: [{ name: 'id', type: 'bigint', form: 'int64', nullable: false }],
  key: [0],
  before: 'key',
  shape: 'columns',
  pinned: false,
}
const effects: readonly Effect[] = [
  { kind: 'truncate', tables: [schema.table, { schema: 'a.b', name: '' }], cascade: true, restartCounters: false },
  {
    kind: 'schema',
    schema,
    changes: [
      { kind: 'add', column: 'b', type: 'integer', value: "it's", proved: true },
      { kind: 'add', column: 'c', type: 'text', collation: '"C"', default: 'now()', proved: false },
      { kind: 'compute', column: 'd', type: 'integer', expression: '(b * 2)', stored: true, proved: true },
      { kind: 'drop', column: 'e' },
      { kind: 'rename', column: 'f', to: 'g' },
      { kind: 'retype', column: 'h', from: 'integer', type: 'bigint', proved: true },
      { kind: 'nullable', column: 'i', nullable: false },
    ],
  },
  { kind: 'rekey', schema, oldKey: new Uint8Array([1, 2]), newImage: new Uint8Array(0) },
  { kind: 'repartition', topic: 'shop.public.orders', partitions: 9 },
]
const barriers = effects.map((effect, i): Barrier => ({
  kind: 'barrier',
  mark: { position: '000000001a2b3c4d' as Position, seq: 4 * i },
  committedAt: 1795341072123.456,
  epoch: 12,
  partitions: [{ topic: 'shop.public.orders', partition: i }],
  effect,
}))
const records: readonly ControlRecord[] = [
  { kind: 'epoch', epoch: Number.MAX_SAFE_INTEGER },
  {
    kind: 'watermark',
    epoch: 1,
    position: '' as Position,
    published: '0a' as Position,
    committedAt: -1,
    full: true,
    ends: [
      { topic: 'a', partition: 0, offset: 2 ** 52 + 1 },
      { topic: 'b', partition: 7, offset: 0 },
    ],
  },
  ...barriers,
]

/** Bytes as numbers, whichever class holds them. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return [...value]
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, plain(each)]))
}

test('control records come out as they went in', () => {
  for (const record of records) {
    const { value } = encodeControl(record)
    const decoded = decodeControl(value)
    value.fill(0xee)
    assert.deepEqual(plain(decoded), plain(record))
  }
})

test('each control record has a key of its own', () => {
  const keys = records.map((record) => Buffer.from(encodeControl(record).key).toString('hex'))
  assert.equal(new Set(keys).size, keys.length)
})

test('damaged control records end in LOG_DAMAGED', () => {
  for (const record of records) {
    const { value } = encodeControl(record)
    for (let size = 0; size < value.length; size++)
      assert.throws(() => decodeControl(value.subarray(0, size)), { code: 'LOG_DAMAGED' })
    assert.throws(() => decodeControl(Buffer.concat([value, Buffer.from([0])])), { code: 'LOG_DAMAGED' })
  }
})
