import { createHash } from 'node:crypto'
import { z } from 'zod'
import { Failure } from '../errors.ts'
import type { Column, Form, TableSchema } from '../model.ts'

/** Avro type of each form. */
const avroType = {
  bool: 'boolean',
  int16: 'int',
  int32: 'int',
  int64: 'long',
  float32: 'float',
  float64: 'double',
  bytes: 'bytes',
  text: 'string',
} as const satisfies Record<Form, string>

/** A name as Avro allows it: each UTF-8 byte outside `[A-Za-z0-9_]`, and a leading digit, becomes `_hh`. Not reversible: the original stands beside
 *  it as a property. The first underscore of `__proto__` too: a reader in JavaScript that keeps fields in an object would set its prototype. */
export function avroName(name: string): string {
  if (name === '__proto__') return '_5f_proto__'
  let result = ''
  for (const byte of Buffer.from(name)) {
    const char = String.fromCharCode(byte)
    const plain = /[A-Za-z_]/.test(char) || (/[0-9]/.test(char) && result !== '')
    result += plain ? char : `_${byte.toString(16).padStart(2, '0')}`
  }
  return result === '' ? '_' : result
}

/** Field names of a table's columns; two that would fall together get their column's number. */
function fieldNames(columns: readonly Column[]): readonly string[] {
  const taken = new Set<string>()
  const plain = columns.map((column) => avroName(column.name))
  const counts = new Map<string, number>()
  for (const name of plain) counts.set(name, (counts.get(name) ?? 0) + 1)
  for (const name of plain) if (counts.get(name) === 1) taken.add(name)
  return plain.map((name, i) => {
    let unique = name
    if (counts.get(name) !== 1) for (unique = `${name}_${i}`; taken.has(unique);) unique += '_'
    taken.add(unique)
    return unique
  })
}

function namespace(schema: TableSchema): string {
  return `${avroName(schema.table.schema)}.${avroName(schema.table.name)}`
}

function property(column: Column): object {
  return { name: column.name, type: column.type, form: column.form, nullable: column.nullable }
}

/** Avro schema of a table's record keys: the key's columns in key order, none of them nullable. */
export function keySchema(schema: TableSchema): object {
  const names = fieldNames(schema.columns)
  return {
    type: 'record',
    name: 'Key',
    namespace: namespace(schema),
    fields: schema.key.map((index) => {
      const column = schema.columns[index]
      if (column === undefined)
        throw new Failure('BUG', { observed: `key column ${index} of ${schema.columns.length}` })
      return { name: names[index], type: avroType[column.form], crossfade: property(column) }
    }),
    crossfade: { schema: schema.table.schema, table: schema.table.name },
  }
}

/** Avro schema of a table's record values: the envelope, in Debezium's names. `op` and `source` stand first so that a reader can judge a record by
 *  its first bytes; `absent` before the rows, so that a decoder knows in time which null means "not sent". */
export function valueSchema(schema: TableSchema): object {
  const names = fieldNames(schema.columns)
  const row = {
    type: 'record',
    name: 'Value',
    fields: schema.columns.map((column, i) => ({
      name: names[i],
      type: ['null', avroType[column.form]],
      default: null,
      crossfade: property(column),
    })),
  }
  return {
    type: 'record',
    name: 'Envelope',
    namespace: namespace(schema),
    fields: [
      { name: 'op', type: 'string' },
      { name: 'source', type: source },
      { name: 'ts_ms', type: 'long' },
      { name: 'absent', type: { type: 'array', items: 'int' }, default: [] },
      { name: 'before', type: ['null', row], default: null },
      { name: 'after', type: ['null', 'Value'], default: null },
    ],
    crossfade: {
      schema: schema.table.schema,
      table: schema.table.name,
      version: schema.version,
      key: [...schema.key],
      before: schema.before,
      shape: schema.shape,
      pinned: schema.pinned,
    },
  }
}

const source = {
  type: 'record',
  name: 'Source',
  fields: [
    { name: 'position', type: 'string' },
    { name: 'seq', type: 'long' },
    { name: 'epoch', type: 'long' },
    { name: 'txId', type: 'string' },
    { name: 'ts_us', type: 'long' },
    { name: 'snapshot', type: 'boolean', default: false },
  ],
}

const form = z.enum(['bool', 'int16', 'int32', 'int64', 'float32', 'float64', 'bytes', 'text'])
const columns = z.array(
  z.object({ crossfade: z.object({ name: z.string(), type: z.string(), form, nullable: z.boolean() }) }),
)
const envelope = z.object({
  crossfade: z.object({
    schema: z.string(),
    table: z.string(),
    version: z.int(),
    key: z.array(z.int()),
    before: z.enum(['key', 'row']),
    shape: z.enum(['columns', 'document']),
    pinned: z.boolean(),
  }),
  fields: z.array(z.object({ name: z.string(), type: z.unknown() })),
})
const nullableRow = z.tuple([z.literal('null'), z.object({ fields: columns })])

/** The table schema a value schema was made from, exactly. Throws LOG_DAMAGED if it is no envelope, UNSUPPORTED if it is laid out otherwise than this
 *  version writes it. */
export function tableSchema(avro: object): TableSchema {
  const outer = envelope.safeParse(avro)
  const row = nullableRow.safeParse(outer.data?.fields.find((field) => field.name === 'before')?.type)
  if (outer.data === undefined || row.data === undefined)
    throw new Failure('LOG_DAMAGED', { object: 'a schema in the log', observed: 'no envelope of ours' })
  const { schema, table, version, key, before, shape, pinned } = outer.data.crossfade
  const found: TableSchema = {
    table: { schema, name: table },
    version,
    columns: row.data[1].fields.map((field) => field.crossfade),
    key,
    before,
    shape,
    pinned,
  }
  if (canonical(valueSchema(found)) !== canonical(avro))
    throw new Failure('UNSUPPORTED', {
      object: `the schema of ${schema}.${table} in the log`,
      observed: 'an envelope of another layout',
      needed: 'records written by this version',
    })
  return found
}

/** One text for one schema, whatever the order of its attributes; our properties count. */
export function canonical(avro: unknown): string {
  if (Array.isArray(avro)) return `[${avro.map(canonical).join(',')}]`
  if (typeof avro !== 'object' || avro === null) return JSON.stringify(avro)
  const entries = Object.entries(avro).sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${entries.map(([name, value]) => `${JSON.stringify(name)}:${canonical(value)}`).join(',')}}`
}

/** A schema's id where no registry gives one: 31 bits of the SHA-256 of its canonical text, never 0. */
export function fingerprint(avro: object): number {
  return fingerprintOf(canonical(avro))
}
/** Of its canonical text. */
export function fingerprintOf(text: string): number {
  return createHash('sha256').update(text).digest().readUInt32BE(0) >>> 1 || 1
}
