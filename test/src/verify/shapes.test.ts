import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import type { ShapeEntry, ShapeKind } from '../../../src/model.ts'
import { compareShapes, verdictOfShapes, type ShapeDifference, type Situation } from '../../../src/verify/shapes.ts'

const settled: Situation = { streams: true, live: () => true }
const still: Situation = { ...settled, streams: false }
const copying: Situation = { ...settled, live: (table) => table !== 's.t' }

function entry(kind: ShapeKind, name: string, more: Partial<ShapeEntry> = {}): ShapeEntry {
  return { kind, table: 's.t', name, text: `${kind} ${name}`, parts: {}, ...more }
}
function column(name: string, parts: Readonly<Record<string, string>> = {}): ShapeEntry {
  return entry('column', name, { parts: { type: 'integer', takes: 'ok', nullable: 'yes', ...parts } })
}
const told = ({ severity, what, part }: ShapeDifference): string => [severity, what, part].filter(Boolean).join(' ')

/** Source and target, and what is to be said. */
type Case = readonly [
  name: string,
  source: readonly ShapeEntry[],
  target: readonly ShapeEntry[],
  told: readonly string[],
  situation?: Situation,
]
const next = (value: string, increment = '1'): ShapeEntry =>
  entry('sequence', 'q', { means: 's.t.id', parts: { next: value, increment } })
const trigger = (enabled: string): ShapeEntry => entry('trigger', 'x', { parts: { definition: 'd', enabled } })
const check = (parts: Readonly<Record<string, string>>): ShapeEntry =>
  entry('check', 'c', { means: 'a > 0', parts: { enforced: 'yes', validated: 'yes', ...parts } })
const unique = (name: string, means: string): ShapeEntry =>
  entry('unique', name, { means, parts: { valid: 'yes', as: 'an index' } })

const cases: readonly Case[] = [
  ['a sequence behind while changes are followed', [next('40')], [next('39')], ['note different next']],
  ['a sequence behind when they are not', [next('40')], [next('39')], ['blocker different next'], still],
  ['a sequence ahead', [next('40')], [next('41')], ['note different next'], still],
  ['a sequence that counts down, behind', [next('-4', '-1')], [next('-3', '-1')], ['blocker different next'], still],
  ['a sequence that counts down, ahead', [next('-4', '-1')], [next('-5', '-1')], ['note different next'], still],
  [
    'a sequence beyond exact numbers',
    [next('9223372036854775807')],
    [next('9223372036854775806')],
    ['blocker different next'],
    still,
  ],
  ['a missing foreign key', [entry('foreign key', 'f', { means: 'f' })], [], ['blocker missing']],
  ['a foreign key that is made later', [entry('foreign key', 'f', { means: 'f' })], [], ['note missing'], copying],
  ['an index that is made later', [entry('index', 'i', { means: 'i' })], [], ['note missing'], copying],
  [
    'a key, while the table is copied',
    [entry('unique', 'k', { means: 'id', parts: { valid: 'yes', as: 'a primary key' } })],
    [],
    ['blocker missing'],
    copying,
  ],
  ['a column, while the table is copied', [column('a')], [], ['blocker missing'], copying],
  ['a trigger that acts on applied rows', [trigger('always')], [], ['warning missing']],
  ['the same, when changes are not followed', [trigger('always')], [], ['blocker missing'], still],
  ['a trigger that is switched off', [trigger('no')], [], ['note missing']],
  ['a trigger only there, switched off', [], [trigger('no')], ['note added']],
  ['proved here, not there', [check({})], [check({ validated: 'no' })], ['warning different validated']],
  ['proved there, not here', [check({ validated: 'no' })], [check({})], ['note different validated']],
  ['not made there at all', [check({})], [check({ enforced: 'no', validated: 'no' })], ['blocker different enforced']],
  [
    'the same under other names',
    [unique('a', 'x'), unique('b', 'y')],
    [unique('b', 'x'), unique('a', 'y')],
    ['note different name', 'note different name'],
  ],
  ['one of two that are the same', [unique('a', 'x'), unique('b', 'x')], [unique('a', 'x')], ['blocker missing']],
  ['a table, and all of it', [entry('table', ''), column('a'), unique('u', 'x')], [], ['blocker missing']],
  [
    'what a partition has from its table is said once',
    [column('a'), { ...column('a'), table: 's.p', of: 's.t' }],
    [],
    ['blocker missing'],
  ],
  [
    'what only the partition lacks is said of it',
    [column('a'), { ...column('a'), table: 's.p', of: 's.t' }],
    [column('a')],
    ['blocker missing'],
  ],
  [
    'a version that only one end tells',
    [entry('collation', 'c', { parts: { locale: 'de', version: '153.1' } })],
    [entry('collation', 'c', { parts: { locale: 'de', version: '' } })],
    ['note different version'],
  ],
  [
    'another version',
    [entry('collation', 'c', { parts: { locale: 'de', version: '153.1' } })],
    [entry('collation', 'c', { parts: { locale: 'de', version: '153.2' } })],
    ['warning different version'],
  ],
  [
    'a database that is not encoded alike',
    [entry('collation', 'default', { parts: { encoding: 'UTF8' } })],
    [entry('collation', 'default', { parts: { encoding: 'LATIN1' } })],
    ['warning different encoding'],
  ],
  [
    'an extension of another version',
    [entry('extension', 'e', { parts: { version: '1' } })],
    [entry('extension', 'e', { parts: { version: '2' } })],
    ['note different version'],
  ],
  ['a wider type', [column('a')], [column('a', { type: 'bigint' })], ['warning different type']],
  ['a narrower one', [column('a')], [column('a', { type: 'smallint', takes: 'blocker' })], ['blocker different type']],
]

describe('what tables are made of', () => {
  for (const [name, source, target, expected, situation = settled] of cases)
    test(name, () => {
      assert.deepEqual(compareShapes(source, target, situation).map(told), expected)
    })

  test('only a blocker is different; what may be on its way is unknown', () => {
    const one = (severity: ShapeDifference['severity']): ShapeDifference => ({
      severity,
      kind: 'column',
      table: '',
      name: '',
      what: 'missing',
    })
    assert.equal(verdictOfShapes([one('warning'), one('note')]), 'equal')
    assert.equal(verdictOfShapes([one('warning'), one('unknown')]), 'unknown')
    assert.equal(verdictOfShapes([one('unknown'), one('blocker')]), 'different')
  })
})

const names = fc.constantFrom('a', 'b', 'c')
const some = fc
  .record({
    kind: fc.constantFrom<ShapeKind>(
      'column',
      'unique',
      'check',
      'foreign key',
      'index',
      'sequence',
      'trigger',
      'parent',
      'type',
      'collation',
    ),
    table: fc.constantFrom('s.t', 's.u'),
    name: names,
    means: names,
    validated: fc.constantFrom('yes', 'no'),
    type: names,
  })
  .map(({ kind, table, name, means, validated, type }): ShapeEntry => {
    const byMeaning = ['unique', 'check', 'foreign key', 'index', 'sequence'].includes(kind)
    const parts = {
      validated,
      type,
      valid: validated,
      next: '5',
      labels: '["x"]',
      nullable: 'yes',
      takes: 'ok',
      definition: type,
    }
    return { kind, table, name, text: `${means} ${type}`, parts, ...(byMeaning && { means }) }
  })
const shape = fc.uniqueArray(some, { selector: ({ kind, table, name }) => `${kind} ${table} ${name}`, maxLength: 20 })

describe('whatever they are made of', () => {
  test('the same in any order is no difference, but the order of columns', () => {
    fc.assert(
      fc.property(shape, fc.infiniteStream(fc.nat()), (entries, order) => {
        const ranked = entries
          .map((one) => ({ one, rank: order.next().value ?? 0 }))
          .toSorted((a, b) => a.rank - b.rank)
        const shuffled = ranked.map(({ one }) => one)
        const found = compareShapes(entries, shuffled, settled).filter(({ part }) => part !== 'order of columns')
        assert.deepEqual(found, [])
      }),
    )
  })

  test('each of both ends is one of a pair, missing or added', () => {
    fc.assert(
      fc.property(shape, shape, (source, target) => {
        const there = compareShapes(source, target, settled)
        const back = compareShapes(target, source, settled)
        const count = (found: readonly ShapeDifference[], what: string): number =>
          found.filter((one) => one.what === what && one.kind !== 'type' && one.kind !== 'collation').length
        assert.equal(count(there, 'missing'), count(back, 'added'))
        assert.equal(count(there, 'added'), count(back, 'missing'))
        const told = (entries: readonly ShapeEntry[]): number =>
          entries.filter(({ kind }) => kind !== 'type' && kind !== 'collation').length
        assert.equal(told(source) - count(there, 'missing'), told(target) - count(there, 'added'))
      }),
    )
  })

  test('one that is taken away is the one that is missing', () => {
    fc.assert(
      fc.property(shape, fc.nat(), (entries, at) => {
        const gone = entries[at % Math.max(1, entries.length)]
        if (gone === undefined || gone.kind === 'type' || gone.kind === 'collation') return
        const found = compareShapes(
          entries,
          entries.filter((one) => one !== gone),
          settled,
        )
        assert.deepEqual(
          found.map(({ kind, table, name, what }) => ({ kind, table, name, what })),
          [{ kind: gone.kind, table: gone.table, name: gone.name, what: 'missing' }],
        )
      }),
    )
  })
})
