import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import type { Prefix } from '../../../src/avro/plan.ts'
import { controlSchemaId, encodeControl } from '../../../src/avro/control.ts'
import { compileDecoder, readPrefix } from '../../../src/avro/decoder.ts'
import { compileEncoder } from '../../../src/avro/encoder.ts'
import { avroName, fingerprint, keySchema, valueSchema } from '../../../src/avro/envelope.ts'
import { Failure } from '../../../src/errors.ts'
import type { Column, Form, TableSchema } from '../../../src/model.ts'
import { Output } from '../../../src/output.ts'
import { readImage, rowsOf, Tag, type Cell } from '../../../src/rows.ts'
import { batchOf, changes, fetched, named, oracle, schemas, type Change, type Sample } from './samples.ts'

export function emptyPrefix(): Prefix {
  return { schemaId: 0, op: 0, positionStart: 0, positionEnd: 0, seq: 0, epoch: 0, committedAt: 0, rest: 0 }
}

function encodeAll(schema: TableSchema, list: readonly Change[]): { key: Buffer | undefined; value: Buffer }[] {
  const encoder = compileEncoder(schema)
  const batch = batchOf(schema, list)
  const out = new Output(8)
  return list.map(({ next }, i) => {
    const start = out.at
    encoder.key(out, batch.images, next === undefined ? 2 * i : 2 * i + 1)
    const middle = out.at
    encoder.value(out, batch, i, 4 * i, epochOf(i))
    const value = Buffer.from(out.bytes.subarray(middle, out.at))
    return { key: schema.key.length === 0 ? undefined : Buffer.from(out.bytes.subarray(start, middle)), value }
  })
}

/** Changes at other places than the transaction does. */
function epochOf(i: number): number {
  return 7 + Math.floor(i / 3)
}

const cases = schemas.chain((schema) => fc.record({ schema: fc.constant(schema), list: changes(schema) }))

test('records are, byte by byte, those of a general Avro library', () => {
  fc.assert(
    fc.property(cases, ({ schema, list }) => {
      const keyType = oracle(keySchema(schema))
      const valueType = oracle(valueSchema(schema))
      const rowName = `${avroName(schema.table.schema)}.${avroName(schema.table.name)}.Value`
      const row = (cells: readonly Sample[] | undefined): unknown =>
        cells === undefined ? null : { [rowName]: named(cells.map(({ wire }) => wire)) }
      const records = encodeAll(schema, list)
      const batch = batchOf(schema, list)
      list.forEach(({ op, old, next }, i) => {
        const transaction = batch.transactions[i >> 1]
        assert.ok(transaction)
        const { position, id, committedAt } = transaction
        const envelope = {
          op: 'cudrp'[op],
          source: {
            position,
            seq: BigInt(4 * i),
            epoch: BigInt(epochOf(i)),
            txId: id,
            ts_us: BigInt(Math.round(committedAt * 1000)),
            snapshot: op === 3,
          },
          ts_ms: BigInt(Math.floor(committedAt)),
          absent: next?.flatMap(({ sent }, column) => (sent === undefined ? [column] : [])) ?? [],
          before: row(old),
          after: row(next),
        }
        const { key, value } = records[i] ?? {}
        assert.ok(value)
        assert.deepEqual([...value.subarray(5)], [...valueType.toBuffer(envelope)])
        assert.deepEqual([value[0], value.readUInt32BE(1)], [0, fingerprint(valueSchema(schema))])
        assert.deepEqual({ ...valueType.fromBuffer(value.subarray(5)) }, { ...valueType.clone(envelope) })
        if (key === undefined) return
        const cells = (next ?? old)?.map(({ wire }) => wire) ?? []
        const plain = named(schema.key.map((column) => Object.values(cells[column] ?? {})[0]))
        assert.deepEqual([...key.subarray(5)], [...keyType.toBuffer(plain)])
        assert.deepEqual([key[0], key.readUInt32BE(1)], [0, fingerprint(keySchema(schema))])
      })
    }),
    { numRuns: 200 },
  )
})

test('images come out of the log as they went in, native where the form is', () => {
  fc.assert(
    fc.property(cases, ({ schema, list }) => {
      const batch = fetched(encodeAll(schema, list))
      const { transactions } = batchOf(schema, list)
      const decoder = compileDecoder(JSON.parse(JSON.stringify(valueSchema(schema))))
      assert.deepEqual(decoder.schema, structuredClone(schema))
      const out = new Output(8)
      const prefix = emptyPrefix()
      list.forEach(({ op, old, next }, i) => {
        assert.equal(readPrefix(batch, i, prefix), 'change')
        const position = Buffer.from(batch.bytes.subarray(prefix.positionStart, prefix.positionEnd)).toString()
        assert.deepEqual(
          { op: prefix.op, seq: prefix.seq, epoch: prefix.epoch, committedAt: prefix.committedAt, position },
          {
            op,
            seq: 4 * i,
            epoch: epochOf(i),
            committedAt: transactions[i >> 1]?.committedAt,
            position: transactions[i >> 1]?.position,
          },
        )
        const start = out.at
        const middle = decoder.images(out, batch, i, prefix)
        sameCells(readImage(out.bytes, start, middle), old)
        sameCells(readImage(out.bytes, middle, out.at), next)
      })
    }),
    { numRuns: 200 },
  )
})

function sameCells(found: readonly Cell[], expected: readonly Sample[] | undefined): void {
  const plain = (cell: Cell): unknown => (cell ? [cell.tag, ...cell.bytes] : cell)
  assert.deepEqual(
    found.map(plain),
    (expected ?? []).map(({ read }) => plain(read)),
  )
}

test('damaged records end in LOG_DAMAGED, and nothing beyond the record is read', () => {
  const damage = fc.record({ at: fc.nat(), byte: fc.nat(255), cut: fc.boolean() })
  fc.assert(
    fc.property(cases, fc.array(damage, { minLength: 1, maxLength: 10 }), ({ schema, list }, damages) => {
      const decoder = compileDecoder(valueSchema(schema))
      for (const { at, byte, cut } of damages)
        for (const { value } of encodeAll(schema, list)) {
          const place = 5 + (at % (value.length - 5))
          const bad = cut ? value.subarray(0, place) : Buffer.from(value)
          if (!cut) bad[place] = byte
          // what stands behind the record must not matter
          const behind = [Buffer.alloc(0), ...[0x00, 0x02, 0xff].map((fill) => Buffer.alloc(200, fill))]
          const results = behind.map((bytes) => decodeOne(decoder, bad, bytes))
          assert.deepEqual(
            results,
            results.map(() => (cut ? 'LOG_DAMAGED' : results[0])),
          )
          assert.equal(decodeOne(decoder, Buffer.concat([value, Buffer.of(byte)]), Buffer.alloc(0)), 'LOG_DAMAGED')
        }
    }),
    { numRuns: 100 },
  )
})

function decodeOne(decoder: ReturnType<typeof compileDecoder>, value: Buffer, behind: Buffer): string {
  const batch = fetched([
    { key: undefined, value },
    { key: behind, value: undefined },
  ])
  const prefix = emptyPrefix()
  const out = new Output(8)
  try {
    assert.equal(readPrefix(batch, 0, prefix), 'change')
    const middle = decoder.images(out, batch, 0, prefix)
    readImage(out.bytes, 0, middle)
    readImage(out.bytes, middle, out.at)
    return out.bytes.toString('hex', 0, out.at)
  } catch (error) {
    assert.ok(error instanceof Failure, String(error))
    assert.match(error.message, /shop\.orders, partition 3, offset 0/)
    return error.code
  }
}

test('integers out of range in the log are damage', () => {
  const of = (form: Form): TableSchema => tableOf([['n', form]], [])
  const decodeAs = (form: Form, body: Uint8Array): string => {
    const [record] = encodeAll(of('text'), [{ op: 0, old: undefined, next: [sent('')] }])
    assert.ok(record)
    // the envelope up to the row's only field, then what that field is to be
    return decodeOne(
      compileDecoder(valueSchema(of(form))),
      Buffer.concat([record.value.subarray(0, -1), body]),
      Buffer.alloc(0),
    )
  }
  const varint = (last: number, size: number): Uint8Array => Buffer.alloc(size, 0xff).fill(last, size - 1)
  for (const [form, bodies] of [
    ['int16', [varint(0x03, 3), varint(0x04, 3)]],
    ['int32', [varint(0x0f, 5), varint(0x10, 5)]],
    ['int64', [varint(0x01, 10), varint(0x02, 10)]],
    ['bool', [Buffer.of(1), Buffer.of(2)]],
  ] as const) {
    assert.notEqual(decodeAs(form, bodies[0]), 'LOG_DAMAGED', form)
    assert.equal(decodeAs(form, bodies[1]), 'LOG_DAMAGED', form)
  }
})

test('tombstones, foreign records and control records are told from changes', () => {
  const control = encodeControl({ kind: 'epoch', epoch: 4 })
  const batch = fetched([
    { key: Buffer.from('k'), value: undefined },
    { key: undefined, value: Buffer.from('{"not": "ours"}') },
    { key: undefined, value: Buffer.from([0, 0]) },
    control,
  ])
  const prefix = emptyPrefix()
  assert.deepEqual(
    [0, 1, 2, 3].map((i) => readPrefix(batch, i, prefix)),
    ['none', 'none', 'none', 'control'],
  )
  assert.equal(prefix.schemaId, controlSchemaId)
})

function tableOf(columns: readonly (readonly [string, Form])[], key: readonly number[]): TableSchema {
  const list: readonly Column[] = columns.map(([name, form]) => ({ name, type: form, form, nullable: true }))
  return {
    table: { schema: 'public', name: 'orders' },
    version: 1,
    columns: list,
    key,
    before: 'row',
    shape: 'columns',
    pinned: false,
  }
}
const sent = (bytes: string | Uint8Array, tag: typeof Tag.text | typeof Tag.native = Tag.text): Sample => ({
  sent: { tag, bytes: Buffer.from(bytes) },
  wire: undefined,
  read: undefined,
})

test('what is not of its form is refused, naming table and column and not the value', () => {
  const wrong: readonly (readonly [Form, readonly string[]])[] = [
    ['bool', ['', 'true', '1', 'T']],
    ['int16', ['', '-', '32768', '-32769', '1.5', '12a', ' 1', '+1']],
    ['int32', ['', '2147483648', '-2147483649', '99999999999999999999', 'NaN', '0x1']],
    ['int64', ['', '9223372036854775808', '-9223372036854775809', '12345678901234567890', '123456789012345678a']],
    ['float32', ['', 'nan', '1e39', '1e', '.', '1.2.3', 'inf', '1e-60']],
    ['float64', ['', '-', '1e400', '0x10', ' 1', '1 ', 'Infinity!', '1e-400', '1e99999999']],
    ['bytes', ['', 'ff', '\\x0', '\\xzz', '\\001']],
  ]
  for (const [form, texts] of wrong)
    for (const text of texts) {
      const schema = tableOf([['secret column', form]], [0])
      const row = [sent(text)]
      assert.throws(
        () => encodeAll(schema, [{ op: 0, old: undefined, next: row }]),
        (error) => {
          assert.ok(error instanceof Failure, `${form} ${text}: ${String(error)}`)
          assert.equal(error.code, 'STREAM_MALFORMED')
          assert.match(error.message, /secret column.*public\.orders/)
          if (text.length > 4) assert.ok(!error.message.includes(text), 'the value is in the message')
          return true
        },
      )
    }
  for (const [form, bytes] of [
    ['bool', [2]],
    ['int16', [1]],
    ['int32', [1, 2]],
    ['int64', [1]],
    ['float32', [1]],
    ['float64', [1]],
    ['text', [65]],
  ] as const)
    assert.throws(
      () =>
        encodeAll(tableOf([['id', form]], []), [
          { op: 0, old: undefined, next: [sent(Buffer.from(bytes), Tag.native)] },
        ]),
      {
        code: 'STREAM_MALFORMED',
      },
    )
})

test('keys without a value, old values not sent and images of another shape are refused', () => {
  const schema = tableOf(
    [
      ['id', 'int32'],
      ['note', 'text'],
    ],
    [0],
  )
  const missing = [null, undefined] as const
  for (const cell of missing) {
    const row = [{ sent: cell, wire: undefined, read: undefined }, sent('x')]
    assert.throws(() => encodeAll(schema, [{ op: 0, old: undefined, next: row }]), { code: 'STREAM_MALFORMED' })
  }
  const absent = { sent: undefined, wire: undefined, read: undefined }
  assert.throws(() => encodeAll(schema, [{ op: 2, old: [sent('1'), absent], next: undefined }]), {
    code: 'STREAM_MALFORMED',
  })
  const encoder = compileEncoder(schema)
  for (const count of [1, 3]) {
    const images = rowsOf([Array.from({ length: count }, () => sent('1').sent)])
    assert.throws(() => encoder.key(new Output(8), images, 0), { code: 'STREAM_MALFORMED' })
  }
  const batch = batchOf(schema, [{ op: 0, old: undefined, next: [sent('1'), sent('x')] }])
  const longer = Buffer.concat([batch.images.bytes, Buffer.of(0)])
  const images = { bytes: longer, starts: Int32Array.of(0, 0, longer.length), count: 2 }
  assert.throws(() => encoder.value(new Output(8), { ...batch, images }, 0, 0, 0), { code: 'STREAM_MALFORMED' })
})

test('images cut or overwritten anywhere end in STREAM_MALFORMED or in a record, never in another error', () => {
  fc.assert(
    fc.property(cases, fc.nat(), fc.nat(255), ({ schema, list }, at, byte) => {
      const batch = batchOf(schema, list)
      const { bytes, starts } = batch.images
      const bad = Buffer.concat([bytes])
      bad[at % bad.length] = byte
      const encoder = compileEncoder(schema)
      const out = new Output(8)
      for (let i = 0; i < batch.count; i++)
        try {
          encoder.key(out, { bytes: bad, starts, count: starts.length - 1 }, 2 * i + 1)
          encoder.value(out, { ...batch, images: { bytes: bad, starts, count: starts.length - 1 } }, i, 0, 0)
        } catch (error) {
          assert.ok(error instanceof Failure && error.code === 'STREAM_MALFORMED', String(error))
        }
    }),
    { numRuns: 300 },
  )
})
