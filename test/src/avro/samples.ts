import avro from 'avsc'
import fc from 'fast-check'
import type { FetchedBatch } from '../../../src/change-log/change-log.ts'
import type { Column, Form, Position, TableSchema } from '../../../src/model.ts'
import { Op, rowsOf, Tag, type Cell, type ChangeBatch } from '../../../src/rows.ts'

/** A cell as the source sends it, as a general Avro library has it, and as it comes out of the log. */
export type Sample = { readonly sent: Cell; readonly wire: unknown; readonly read: Cell }
type Row = readonly Sample[]
export type Change = { readonly op: number; readonly old: Row | undefined; readonly next: Row | undefined }

const text = (value: string): Cell => ({ tag: Tag.text, bytes: Buffer.from(value) })
const native = (size: number, write: (to: Buffer) => unknown): Cell => {
  const bytes = Buffer.alloc(size)
  write(bytes)
  return { tag: Tag.native, bytes }
}
const either = (printed: string, binary: Cell, wire: unknown): fc.Arbitrary<Sample> =>
  fc.boolean().map((asText) => ({ sent: asText ? text(printed) : binary, wire, read: binary }))

const limits = [0n, 1n, -1n, 63n, 64n, -65n, 2n ** 31n, 2n ** 53n, -(2n ** 53n) - 1n, 2n ** 63n - 1n, -(2n ** 63n)]
const int64: fc.Arbitrary<Sample> = fc
  .oneof(
    fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
    fc.constantFrom(...limits),
    fc.maxSafeInteger().map(BigInt),
  )
  .chain((value) =>
    either(
      String(value),
      native(8, (to) => to.writeBigInt64BE(value)),
      { long: value },
    ),
  )
const whole = (bits: 16 | 32): fc.Arbitrary<Sample> =>
  fc.integer({ min: -(2 ** (bits - 1)), max: 2 ** (bits - 1) - 1 }).chain((value) =>
    either(
      String(value),
      native(bits / 8, (to) => to.writeIntBE(value, 0, bits / 8)),
      { int: value },
    ),
  )
const printed = (value: number, digits: string): string => (Object.is(value, -0) ? '-0' : digits)

const forms: Readonly<Record<Form, fc.Arbitrary<Sample>>> = {
  bool: fc.boolean().chain((value) =>
    either(
      value ? 't' : 'f',
      native(1, (to) => to.writeUInt8(value ? 1 : 0)),
      { boolean: value },
    ),
  ),
  int16: whole(16),
  int32: whole(32),
  int64,
  float32: fc.float().chain((value) => {
    const digits = Number.isFinite(value) ? value.toPrecision(9) : String(value)
    return either(
      printed(value, digits),
      native(4, (to) => to.writeFloatBE(value)),
      { float: value },
    )
  }),
  float64: fc.double().chain((value) =>
    either(
      printed(value, String(value)),
      native(8, (to) => to.writeDoubleBE(value)),
      { double: value },
    ),
  ),
  bytes: fc.uint8Array({ maxLength: 100 }).chain((value) => {
    const bytes = Buffer.from(value)
    return either(`\\x${bytes.toString('hex')}`, { tag: Tag.native, bytes }, { bytes })
  }),
  text: fc
    .string({ unit: 'grapheme', maxLength: 100 })
    .map((value) => ({ sent: text(value), wire: { string: value }, read: text(value) })),
}
const formNames: readonly Form[] = ['bool', 'int16', 'int32', 'int64', 'float32', 'float64', 'bytes', 'text']

const name = fc.oneof(
  fc.string({ unit: 'grapheme', minLength: 1, maxLength: 12 }),
  fc.constantFrom('id', '__proto__', 'a b', 'a_20b', '1st', 'constructor', 'Größe'),
)
const column: fc.Arbitrary<Column> = fc.record({
  name,
  type: fc.string({ maxLength: 8 }),
  form: fc.constantFrom(...formNames),
  nullable: fc.boolean(),
})
export const schemas: fc.Arbitrary<TableSchema> = fc
  .record({
    table: fc.record({ schema: name, name }),
    version: fc.nat(),
    columns: fc.uniqueArray(column, { selector: ({ name: by }) => by, minLength: 1, maxLength: 8 }),
    before: fc.constantFrom('key' as const, 'row' as const),
    shape: fc.constantFrom('columns' as const, 'document' as const),
    pinned: fc.boolean(),
  })
  .chain((schema) => fc.shuffledSubarray(schema.columns.map((_, i) => i)).map((key) => ({ ...schema, key })))

const isNull: Sample = { sent: null, wire: null, read: null }
const isAbsent: Sample = { sent: undefined, wire: null, read: undefined }

function row(schema: TableSchema, old: boolean): fc.Arbitrary<Row> {
  return fc.tuple(
    ...schema.columns.map(({ form }, i) => {
      if (schema.key.includes(i)) return forms[form]
      if (!old) return fc.oneof({ weight: 5, arbitrary: forms[form] }, fc.constant(isNull), fc.constant(isAbsent))
      const cell = fc.oneof({ weight: 5, arbitrary: forms[form] }, fc.constant(isNull))
      return schema.before === 'row'
        ? cell
        : fc.oneof(cell, fc.constant(isAbsent)).map((any) => ({ ...isAbsent, sent: any.sent }))
    }),
  )
}
export function changes(schema: TableSchema): fc.Arbitrary<readonly Change[]> {
  const old = row(schema, true)
  const next = row(schema, false)
  const none = fc.constant(undefined)
  return fc.array(
    fc.oneof(
      fc.record({ op: fc.constantFrom(Op.insert, Op.read, Op.patch), old: none, next }),
      fc.record({ op: fc.constant(Op.update), old: fc.option(old, { nil: undefined }), next }),
      fc.record({ op: fc.constant(Op.delete), old, next: none }),
    ),
    { minLength: 1, maxLength: 5 },
  )
}

/** One transaction for every two changes. */
export function batchOf(schema: TableSchema, list: readonly Change[]): ChangeBatch {
  const images = list.flatMap(({ old, next }) => [old, next].map((cells) => cells?.map(({ sent }) => sent) ?? []))
  return {
    kind: 'changes',
    count: list.length,
    images: rowsOf(images),
    op: Uint8Array.from(list, ({ op }) => op),
    table: new Uint16Array(list.length),
    schemas: [schema],
    transactions: list
      .filter((_, i) => i % 2 === 0)
      .map((_, n) => ({
        position: `${n}`.padStart(16, '0') as Position,
        committedAt: 1795341072123.456 + n,
        id: `${1000 + n}`,
        first: 2 * n,
        firstSeq: 0,
      })),
  }
}

/** Records laid behind each other as a log hands them out. */
export function fetched(
  records: readonly { readonly key: Uint8Array | undefined; readonly value: Uint8Array | undefined }[],
): FetchedBatch {
  const bounds = new Int32Array(4 * records.length)
  const parts: Uint8Array[] = []
  let at = 0
  records.forEach((record, i) => {
    ;[record.key, record.value].forEach((part, side) => {
      bounds[4 * i + 2 * side] = part === undefined ? -1 : at
      if (part !== undefined) parts.push(part)
      at += part?.length ?? 0
      bounds[4 * i + 2 * side + 1] = part === undefined ? -1 : at
    })
  })
  const offsets = Float64Array.from(records, (_, i) => i)
  return {
    topic: 'shop.orders',
    partition: 3,
    bytes: Buffer.concat(parts),
    count: records.length,
    offsets,
    bounds,
    next: records.length,
    end: records.length,
  }
}

/** The general library as the oracle: whole longs, unions by the name of their branch. */
export function oracle(schema: object): avro.Type {
  const long = avro.types.LongType.__with({
    fromBuffer: (bytes: Buffer) => bytes.readBigInt64LE(),
    toBuffer: (value: bigint) => {
      const bytes = Buffer.alloc(8)
      bytes.writeBigInt64LE(value)
      return bytes
    },
    fromJSON: BigInt,
    toJSON: String,
    isValid: (value: unknown) => typeof value === 'bigint',
    compare: (a: bigint, b: bigint) => (a < b ? -1 : a > b ? 1 : 0),
  })
  return avro.Type.forSchema(plainNames(schema) as avro.Schema, { registry: { long }, wrapUnions: true })
}

/** It compiles code from names and keeps rows as objects, where a column called `__proto__` cannot stand: fields of rows are called c0, c1. */
function plainNames(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(plainNames)
  if (typeof schema !== 'object' || schema === null) return schema
  const copy: Record<string, unknown> = { ...schema }
  for (const key of ['type', 'fields', 'items']) if (key in copy) copy[key] = plainNames(copy[key])
  if ((copy['name'] === 'Value' || copy['name'] === 'Key') && Array.isArray(copy['fields']))
    copy['fields'] = copy['fields'].map((field: object, i) => ({ ...field, name: `c${i}` }))
  return copy
}

export function named(values: readonly unknown[]): Record<string, unknown> {
  return Object.fromEntries(values.map((value, i) => [`c${i}`, value]))
}
