import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import avro from 'avsc'
import fc from 'fast-check'
import { controlKeySchema, controlSchema } from '../../../src/avro/control-schema.ts'
import { avroName, canonical, fingerprint, keySchema, tableSchema, valueSchema } from '../../../src/avro/envelope.ts'
import type { Form, TableSchema } from '../../../src/model.ts'
import { schemas } from './samples.ts'

const forms: readonly Form[] = ['bool', 'int16', 'int32', 'int64', 'float32', 'float64', 'bytes', 'text']
/** The table of schemas/envelope.avsc: one column of each form. */
const example: TableSchema = {
  table: { schema: 'public', name: 'example' },
  version: 1,
  columns: forms.map((form) => ({ name: `a ${form}`, type: form, form, nullable: form !== 'int64' })),
  key: [3],
  before: 'row',
  shape: 'columns',
  pinned: false,
}
const procedure = `The wire form has changed. If that is meant:
1. Records of the old form are still in logs: readers must go on understanding them (src/avro/decoder.ts, tableSchema).
2. Write what changed, and what an older reader does with it, into schemas/CHANGES.md.
3. CROSSFADE_WRITE_SCHEMAS=1 node --test test/src/avro/envelope.test.ts writes the files; put the fingerprints it prints into this test.`

test('the wire form is the one that is pinned', async () => {
  const files = { 'envelope.avsc': valueSchema(example), 'control.avsc': controlSchema }
  const pinned = { key: 1733980627, envelope: 1225879196, control: 1816577730, controlKey: 139327095 }
  const found = {
    key: fingerprint(keySchema(example)),
    envelope: fingerprint(valueSchema(example)),
    control: fingerprint(controlSchema),
    controlKey: fingerprint(controlKeySchema),
  }
  for (const [name, schema] of Object.entries(files)) {
    const file = new URL(`../../../schemas/${name}`, import.meta.url)
    if (process.env['CROSSFADE_WRITE_SCHEMAS'] === '1') {
      const { writeFileSync } = await import('node:fs')
      writeFileSync(file, `${JSON.stringify(schema, undefined, 2)}\n`)
      console.log(found)
    }
    assert.equal(canonical(JSON.parse(readFileSync(file, 'utf8'))), canonical(schema), procedure)
  }
  assert.deepEqual(found, pinned, procedure)
})

test('a table schema is read back from its envelope exactly', () => {
  fc.assert(
    fc.property(schemas, (schema) => {
      assert.deepEqual(tableSchema(JSON.parse(JSON.stringify(valueSchema(schema)))), structuredClone(schema))
    }),
  )
})

test('field names are legal and distinct, whatever the columns are called', () => {
  fc.assert(
    fc.property(schemas, (schema) => {
      const type = avro.Type.forSchema(valueSchema(schema) as avro.Schema)
      assert.ok(type instanceof avro.types.RecordType)
    }),
  )
  assert.deepEqual(['id', 'a b', '1st', 'größe', '', '__proto__'].map(avroName), [
    'id',
    'a_20b',
    '_31st',
    'gr_c3_b6_c3_9fe',
    '_',
    '_5f_proto__',
  ])
})

test('a column called __proto__ beside others is read by a library that keeps fields in an object', () => {
  // avsc puts the field into an object under its name: as a prototype its `name` would then refuse to be set.
  const columns = [
    '__proto__',
    'name',
    'type',
    'constructor',
    'toString',
    'key',
    'op',
    'source',
    'before',
    'after',
    '_5f_proto__',
  ]
  const schema = {
    ...example,
    columns: columns.map((name) => ({ name, type: 'bool', form: 'bool' as const, nullable: true })),
  }
  const type = avro.Type.forSchema(valueSchema(schema) as avro.Schema)
  assert.ok(type instanceof avro.types.RecordType)
})

test('an envelope laid out otherwise is refused, and so is what is none', () => {
  const other = structuredClone(valueSchema(example)) as { fields: unknown[] }
  other.fields.push({ name: 'more', type: 'int' })
  assert.throws(() => tableSchema(other), { code: 'UNSUPPORTED' })
  assert.throws(() => tableSchema(keySchema(example)), { code: 'LOG_DAMAGED' })
  assert.throws(() => tableSchema({}), { code: 'LOG_DAMAGED' })
})

test('a reader with Debezium’s envelope of the same names resolves ours', () => {
  const reader = {
    type: 'record',
    name: 'Envelope',
    namespace: 'public.example',
    fields: [
      {
        name: 'before',
        type: [
          'null',
          { type: 'record', name: 'Value', fields: [{ name: 'a_20int64', type: ['null', 'long'], default: null }] },
        ],
        default: null,
      },
      { name: 'after', type: ['null', 'Value'], default: null },
      {
        name: 'source',
        type: { type: 'record', name: 'Source', fields: [{ name: 'db', type: 'string', default: '' }] },
      },
      { name: 'op', type: 'string' },
      { name: 'ts_ms', type: ['null', 'long'], default: null },
      { name: 'transaction', type: ['null', 'string'], default: null },
    ],
  }
  const writerType = avro.Type.forSchema(valueSchema(example) as avro.Schema)
  const readerType = avro.Type.forSchema(reader as avro.Schema)
  assert.ok(readerType.createResolver(writerType))
})

test('the order of attributes does not change a fingerprint, properties do', () => {
  const { type, ...rest } = keySchema(example) as { type: string }
  assert.equal(fingerprint({ ...rest, type }), fingerprint(keySchema(example)))
  assert.notEqual(fingerprint(valueSchema({ ...example, version: 2 })), fingerprint(valueSchema(example)))
})
