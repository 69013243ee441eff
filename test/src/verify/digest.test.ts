import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { textToNative } from '../../../src/avro/native.ts'
import { Failure } from '../../../src/errors.ts'
import type { Form, TableSchema } from '../../../src/model.ts'
import { rowsOf, Tag, type Cell } from '../../../src/rows.ts'
import { openDigester } from '../../../src/verify/digest.ts'
import { canonicalBytes, digestOf } from '../../support/digest-oracle.ts'
import { exampleOf } from './example.ts'

const seed = Number(process.env['CROSSFADE_SEED'] ?? Date.now() % 100_000)
const schemaOf = (forms: readonly Form[]): TableSchema => ({
  table: { schema: 's', name: 't' },
  version: 1,
  columns: forms.map((form, i) => ({ name: `c${i}`, type: form, form, nullable: true })),
  key: [0],
  before: 'key',
  shape: 'columns',
  pinned: false,
})
const text = (value: string | null): Cell => (value === null ? null : { tag: Tag.text, bytes: Buffer.from(value) })
const texts = (count: number): TableSchema => schemaOf(Array.from({ length: count }, () => 'text'))

describe('the digest of rows', () => {
  it('is what the example of the specification says', () => {
    const example = exampleOf(readFileSync(new URL('../../../docs/digest.md', import.meta.url), 'utf8'))
    assert.equal(example.rows.length, 2)
    for (const { cells, bytes } of example.rows) assert.equal(canonicalBytes(cells).toString('hex'), bytes)
    for (const { cells, hash } of example.rows) {
      const sums = [BigInt(`0x${hash.slice(0, 16)}`), BigInt(`0x${hash.slice(16, 32)}`)]
      const digester = openDigester(texts(4))
      digester.add(rowsOf([cells.map(text)]))
      assert.deepEqual(digester.digest(), { rows: 1, sums })
    }
    const digester = openDigester(texts(4))
    for (const { cells } of example.rows) digester.add(rowsOf([cells.map(text)]))
    assert.deepEqual(digester.digest(), example.digest)
  })

  it('is that of the specification for any rows, in any order and any batches', (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    const cell = fc.option(
      fc.oneof(fc.string({ unit: 'binary', maxLength: 80 }), fc.constantFrom('', ' ', 'NULL', '\u0000')),
    )
    const table = fc
      .nat(12)
      .chain((width) => fc.array(fc.array(cell, { minLength: width + 1, maxLength: width + 1 }), { maxLength: 30 }))
    fc.assert(
      fc.property(table, fc.nat(30), (rows, cut) => {
        const expected = digestOf(rows)
        const digester = openDigester(texts(rows[0]?.length ?? 1))
        for (const part of [rows.slice(cut), rows.slice(0, cut)].map((some) => some.toReversed()))
          digester.add(rowsOf(part.map((row) => row.map(text))))
        assert.deepEqual(digester.digest(), expected)
      }),
      { seed, numRuns: 150 },
    )
  })

  it('takes a native cell for the text it stands for', (t) => {
    t.diagnostic(`CROSSFADE_SEED=${seed}`)
    const values: Readonly<Record<Exclude<Form, 'text'>, fc.Arbitrary<string>>> = {
      bool: fc.constantFrom('t', 'f'),
      int16: fc.integer({ min: -32768, max: 32767 }).map(String),
      int32: fc.integer().map(String),
      int64: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String),
      float32: fc.constantFrom('-0', '0', 'NaN', 'Infinity', '-Infinity', '0.1', '1e-45', '3.4028235e+38', '1e+15'),
      float64: fc.constantFrom(
        '-0',
        '0',
        'NaN',
        'Infinity',
        '-Infinity',
        '0.1',
        '5e-324',
        '1e+15',
        '123456789012345',
        '0.0001',
      ),
      bytes: fc.uint8Array().map((bytes) => `\\x${Buffer.from(bytes).toString('hex')}`),
    }
    for (const [form, value] of Object.entries(values) as [Form, fc.Arbitrary<string>][])
      fc.assert(
        fc.property(value, fc.option(fc.string()), (one, two) => {
          const bytes = textToNative(form, one)
          assert.ok(bytes)
          const digester = openDigester(schemaOf([form, 'text']))
          digester.add(rowsOf([[{ tag: Tag.native, bytes }, text(two)]]))
          assert.deepEqual(digester.digest(), digestOf([[one, two]]))
        }),
        { seed, numRuns: 100 },
      )
  })

  it('has room for rows of any size: nulls and native cells are longer than in the image', () => {
    for (const size of [62_000, 65_000, 65_500, 65_536, 9_000_000]) {
      const row = [
        ...Array.from({ length: 600 }, () => null),
        'x'.repeat(size),
        ...Array.from({ length: 600 }, () => null),
      ]
      const digester = openDigester(texts(row.length))
      digester.add(rowsOf([row.map(text), row.map(text)]))
      assert.deepEqual(digester.digest(), digestOf([row, row]))
    }
    const bytes = Buffer.alloc(100_000, 0xab)
    const digester = openDigester(schemaOf(['bytes', 'bytes', 'text']))
    digester.add(rowsOf([[{ tag: Tag.native, bytes }, { tag: Tag.native, bytes }, text('end')]]))
    const hex = `\\x${bytes.toString('hex')}`
    assert.deepEqual(digester.digest(), digestOf([[hex, hex, 'end']]))
  })

  it('passes over an empty image, and refuses what is no whole row', () => {
    const digester = openDigester(texts(2))
    digester.add(rowsOf([[], [text('a'), null], []]))
    assert.deepEqual(digester.digest(), digestOf([['a', null]]))
    for (const cells of [[text('a'), undefined], [text('a')], [text('a'), null, null]])
      assert.throws(
        () => digester.add(rowsOf([cells])),
        (error) => error instanceof Failure && error.code === 'BUG',
      )
  })
})
