import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { createArrived, reserveChange, type Arrived } from '../../../src/apply/arrived.ts'
import { createFold } from '../../../src/apply/fold.ts'
import { Failure } from '../../../src/errors.ts'
import { tableName } from '../../../src/model.ts'
import { appendImage, Op, Tag, type RowGroup } from '../../../src/rows.ts'
import { change } from './model-target.ts'
import { tableOf, valuesOf, type Change, type Row, type Value } from './rows-for-tests.ts'

const narrow = tableOf('narrow')
const wide = tableOf('wide', {
  columns: Array.from({ length: 40 }, (_, i) => ({ name: `c${i}`, type: 'text', form: 'text', nullable: true })),
})
const tables = [narrow, wide]

function arrive(changes: readonly Change[]): Arrived {
  const arrived = createArrived()
  for (const schema of tables) arrived.tables.push({ schema, name: tableName(schema.table), inOrder: false })
  for (const { op, schema, old, row } of changes) {
    reserveChange(arrived)
    const i = arrived.count++
    const key = Buffer.from((row ?? old)?.[0] ?? '')
    arrived.keys.reserve(key.length)
    arrived.keys.at += key.copy(arrived.keys.bytes, arrived.keys.at)
    arrived.key[i + 1] = arrived.keys.at
    arrived.op[i] = op
    arrived.table[i] = tables.indexOf(schema)
    const add = (values: Row | undefined): void => {
      if (values === undefined) return
      const cells = values.map((value) =>
        typeof value === 'string' ? { tag: Tag.text, bytes: Buffer.from(value) } : value,
      )
      appendImage(arrived.images, cells)
    }
    arrived.old[i] = arrived.images.at
    add(old)
    arrived.fresh[i] = arrived.images.at
    add(row)
    arrived.end[i] = arrived.images.at
  }
  return arrived
}

function fold(changes: readonly Change[], mayMiss = false): readonly RowGroup[] {
  const arrived = arrive(changes)
  return createFold()(
    arrived,
    Int32Array.from({ length: arrived.count }, (_, i) => i),
    mayMiss,
  )
}

const value: fc.Arbitrary<Value> = fc.option(fc.string({ maxLength: 6 }))
const keys = fc.constantFrom('1', '2', '3')
const image = (id: string, width: number, absent: boolean): fc.Arbitrary<Row> =>
  fc
    .array(absent ? fc.oneof(value, fc.constant(undefined)) : value, { minLength: width - 1, maxLength: width - 1 })
    .map((rest) => [id, ...rest])
const someChange: fc.Arbitrary<Change> = fc
  .tuple(fc.constantFrom(narrow, wide), keys, fc.constantFrom(Op.insert, Op.update, Op.update, Op.delete))
  .chain(([schema, id, op]): fc.Arbitrary<Change> => {
    const width = schema.columns.length
    if (op === Op.delete) return fc.constant({ op, schema, old: [id, ...Array<undefined>(width - 1).fill(undefined)] })
    return image(id, width, op === Op.update).map((row) => ({ op, schema, row }))
  })

type Content = Map<string, Map<string, { row: Value[]; copies: number }>>
function filled(start: readonly string[]): Content {
  const rows = (width: number): Map<string, { row: Value[]; copies: number }> =>
    new Map(start.map((id) => [JSON.stringify([id]), { row: [id, ...Array<Value>(width - 1).fill('old')], copies: 1 }]))
  return new Map(tables.map((schema) => [schema.table.name, rows(schema.columns.length)]))
}
function into(content: Content, { schema, op, old, row }: Change): void {
  change(content.get(schema.table.name) ?? new Map(), schema, op, old, row ?? [], true)
}

test('groups of a folded batch end in what the changes do one by one', () => {
  const runs = fc.property(
    fc.array(someChange, { maxLength: 40 }),
    fc.uniqueArray(keys),
    fc.integer({ min: 0, max: 40 }),
    (changes, start, middle) => {
      const expected = filled(start)
      for (const one of changes) into(expected, one)
      const folded = filled(start)
      const shared = createFold()
      // Twice through the same fold: what it kept of the first call must not show in the second.
      for (const part of [changes.slice(0, middle), changes.slice(middle)]) {
        const arrived = arrive(part)
        const groups = shared(
          arrived,
          Int32Array.from({ length: arrived.count }, (_, i) => i),
          true,
        )
        const seen = new Set<string>()
        for (const { schema, kind, columns, rows } of groups) {
          for (let i = 0; i < rows.count; i++) {
            const row = valuesOf(rows.bytes, rows.starts[i] ?? 0, rows.starts[i + 1] ?? 0)
            const name = `${schema.table.name} ${row[0]}`
            assert.ok(!seen.has(name), 'keys are distinct over all groups')
            seen.add(name)
            if (kind === 'delete') into(folded, { op: Op.delete, schema, old: row })
            else {
              assert.deepEqual(
                columns,
                [...row.keys()].filter((column) => row[column] !== undefined),
              )
              // An update never makes a row, also where it has all columns.
              const there = folded.get(schema.table.name)?.has(JSON.stringify([row[0]])) === true
              if (kind === 'upsert' || there) into(folded, { op: Op.insert, schema, row })
            }
          }
        }
      }
      assert.deepEqual(folded, expected)
    },
  )
  fc.assert(runs, { numRuns: 400 })
})

test('a batch of inserts is handed on as it lies', () => {
  const changes = ['1', '2', '3'].map((id) => ({ op: Op.insert, schema: narrow, row: [id, 'a', null, '4'] }))
  const arrived = arrive(changes)
  const [group, ...more] = createFold()(arrived, Int32Array.of(0, 1, 2), false)
  assert.equal(more.length, 0)
  assert.equal(group?.kind, 'upsert')
  assert.equal(group?.rows.bytes, arrived.images.bytes)
})

test('a large value that no change touched is copied once, however often its row changed', () => {
  const big = 'x'.repeat(1_000_000)
  const touches = Array.from({ length: 500 }, (_, n) => {
    return { op: Op.update, schema: narrow, row: ['1', undefined, `${n}`, undefined] }
  })
  const began = process.memoryUsage().arrayBuffers
  const [group] = fold([{ op: Op.update, schema: narrow, row: ['1', big, 'b', undefined] }, ...touches])
  assert.equal(group?.kind, 'update')
  assert.deepEqual(group?.columns, [0, 1, 2])
  assert.ok((group?.rows.starts[1] ?? 0) - (group?.rows.starts[0] ?? 0) < 1_000_100)
  assert.ok(process.memoryUsage().arrayBuffers - began < 20_000_000)
})

test('a partial update right after its row was deleted is drift, unless rows may be missing', () => {
  const changes = [
    { op: Op.delete, schema: narrow, old: ['1', undefined, undefined, undefined] },
    { op: Op.update, schema: narrow, row: ['1', 'a', undefined, null] },
  ]
  assert.throws(
    () => fold(changes),
    (error: unknown) => error instanceof Failure && error.code === 'TARGET_DRIFTED',
  )
  assert.deepEqual(
    fold(changes, true).map(({ kind }) => kind),
    ['delete'],
  )
})
