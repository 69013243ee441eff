import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import type { TableId } from '../../../src/model.ts'
import { parsePattern, patternFindings, tableFilter } from '../../../src/config/table-pattern.ts'

const matches = (pattern: string, schema: string, name: string): boolean => tableFilter([pattern], [])({ schema, name })

describe('a table pattern', () => {
  const cases: readonly (readonly [string, string, string, boolean])[] = [
    ['public.orders', 'public', 'orders', true],
    ['public.orders', 'public', 'Orders', false],
    ['public.orders', 'public', 'orders2', false],
    ['public.*', 'public2', 'orders', false],
    ['public.audit_*', 'public', 'audit_', true],
    ['public.t?', 'public', 't1', true],
    ['public.t?', 'public', 't', false],
    ['public.[ab]', 'public', 'b', true],
    ['public.{a,b}', 'public', 'a', false],
    ['public.!a', 'public', 'b', false],
    ['public.!a', 'public', '!a', true],
    ['public.a(b)+$', 'public', 'a(b)+$', true],
    ['*.*', 'public', 'a/b', true],
    ['*.*', 'public', '..', true],
    ['*.*', 'public', '.hidden', true],
    ['*.*', 'public', 'two\nlines', true],
    ['*.*', 'public', '__proto__', true],
    ['*.*', 'crossfade', 'checkpoint', false],
    ['public.a.b', 'public', 'a.b', true],
    ['"a.b".c', 'a.b', 'c', true],
    ['"a.*".c', 'a.x', 'c', false],
    ['public."say ""hi"""', 'public', 'say "hi"', true],
  ]
  for (const [pattern, schema, name, expected] of cases) {
    it(`${pattern} ${expected ? 'takes' : 'leaves'} ${JSON.stringify(name)} of ${schema}`, () => {
      assert.equal(matches(pattern, schema, name), expected)
    })
  }

  it('*.* takes every name but those of our own schema', () => {
    const name = fc.string({ minLength: 1, maxLength: 63, unit: 'grapheme' })
    fc.assert(fc.property(name, name, (schema, table) => matches('*.*', schema, table) === (schema !== 'crossfade')))
  })

  it('in quotes takes exactly its own name', () => {
    const name = fc.string({
      minLength: 1,
      maxLength: 20,
      unit: fc.constantFrom('a', '*', '?', '.', '"', '/', '[', '\\'),
    })
    const quoted = (text: string): string => `"${text.replaceAll('"', '""')}"`
    fc.assert(
      fc.property(name, name, (one, other) => {
        const pattern = `${quoted(one)}.${quoted(other)}`
        assert.ok(matches(pattern, one, other))
        assert.equal(matches(pattern, other, one), one === other)
      }),
    )
  })

  for (const text of ['', 'orders', '.', 'public.', '.orders', '"public.orders', '"".x'])
    it(`is not ${JSON.stringify(text)}`, () => assert.equal(parsePattern(text), undefined))

  it('that is excluded wins, and one that matches nothing is told', () => {
    const tables = ['orders', 'audit_1', 'audit_2'].map((name) => ({ table: { schema: 'public', name } }))
    const include = ['public.*', 'shop.*']
    const exclude = ['public.audit_*', 'public.tmp_*', 'shop.x']
    const filter = tableFilter(include, exclude)
    assert.deepEqual(
      tables.filter(({ table }) => filter(table)).map(({ table }) => table.name),
      ['orders'],
    )
    assert.deepEqual(
      patternFindings(include, exclude, tables).map(({ level, observed }) => [level, observed]),
      [
        ['warning', 'tables.include: "shop.*" matches no table'],
        ['warning', 'tables.exclude: "public.tmp_*" matches no table'],
        ['warning', 'tables.exclude: "shop.x" matches no table'],
      ],
    )
    assert.equal(patternFindings(['x.*'], [], tables)[0]?.level, 'blocker')
  })

  it('of a table takes its partitions, and leaves them out; what leaves out wins', () => {
    const id = (name: string): TableId => ({ schema: 'public', name })
    const tables = [
      { table: id('y2024'), within: [id('sales')] },
      { table: id('y2025_a'), within: [id('sales'), id('y2025')] },
      { table: id('y2025_b'), within: [id('sales'), id('y2025')] },
      { table: id('other'), within: [] },
    ]
    const chosen = (include: string, ...exclude: string[]): readonly string[] => {
      const filter = tableFilter([include], exclude)
      return tables.filter(({ table, within }) => filter(table, within)).map(({ table }) => table.name)
    }
    assert.deepEqual(chosen('public.sales'), ['y2024', 'y2025_a', 'y2025_b'])
    assert.deepEqual(chosen('public.y2025'), ['y2025_a', 'y2025_b'])
    assert.deepEqual(chosen('public.y2025_a'), ['y2025_a'])
    assert.deepEqual(chosen('public.sales', 'public.y2025_b'), ['y2024', 'y2025_a'])
    assert.deepEqual(chosen('public.*', 'public.y2025'), ['y2024', 'other'])
    assert.deepEqual(chosen('*.*', 'public.sales'), ['other'])
    assert.deepEqual(patternFindings(['public.sales'], ['public.y2025'], tables), [])
  })
})
