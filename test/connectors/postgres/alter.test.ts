import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { missingAt } from '../../../connectors/postgres/alter.ts'
import type { CatalogTable } from '../../../connectors/postgres/schema.ts'
import type { Shape, ShapeColumn } from '../../../connectors/postgres/source-queries.ts'
import { changesBetween, stepsBetween } from '../../../connectors/postgres/changes-between.ts'
import { unfollowable } from '../../../connectors/postgres/unfollowable.ts'
import type { TableChange } from '../../../src/model.ts'

/** A column by its number, the name it has, and its type. */
type Held = { readonly number: number; readonly type: string }
type Columns = ReadonlyMap<string, Held>

const types = new Map([
  [23, 'integer'],
  [20, 'bigint'],
  [25, 'text'],
])
function shapeOf(columns: readonly (readonly [number, string, number])[]): Shape {
  return {
    oid: 1,
    schema: 'public',
    name: 'a',
    kind: 'r',
    identity: 'd 1',
    relfilenode: 1,
    touched: '1',
    entry: 1,
    filtered: false,
    leaves: [],
    attributes: [],
    isPartition: false,
    dropped: [],
    columns: columns.map(([number, name, type]): ShapeColumn => {
      const declared = types.get(type) ?? ''
      const plain = { collation: null, notNull: false, generated: '', expression: null, needs: null, missing: null }
      return { number, name, type, typmod: -1, declared, ...plain, touched: '1' }
    }),
  }
}
function heldBy({ columns }: Shape): Columns {
  return new Map(columns.map(({ name, number, declared }) => [name, { number, type: declared }]))
}

/** What a server does, refusals included. `added`: the number of what is added. */
function run(columns: Columns, change: TableChange, added: (name: string) => number): Columns {
  const after = new Map(columns)
  const old = after.get(change.column)
  if (change.kind === 'add') {
    assert.equal(old, undefined, `${change.column} is there`)
    return after.set(change.column, { number: added(change.column), type: change.type })
  }
  assert.ok(old, `no column ${change.column}`)
  if (change.kind === 'retype') return after.set(change.column, { ...old, type: change.type })
  after.delete(change.column)
  if (change.kind !== 'rename') return after
  assert.ok(!after.has(change.to), `${change.to} is there`)
  return after.set(change.to, old)
}
function target(columns: Columns): CatalogTable {
  const all = [...columns].map(([name, { type }]) => ({ name, type, generated: false, notNull: false }))
  return { table: { schema: 'public', name: 'a' }, columns: all } as unknown as CatalogTable
}

/** From wherever a person stopped, the rest leads to the columns of the source, each with what it held. */
function check(before: Shape, after: Shape): void {
  const numbers = new Map(after.columns.map(({ name, number }) => [name, number]))
  const added = (name: string): number => numbers.get(name) ?? -1
  let base = before
  for (const step of stepsBetween(before, after)) {
    const changes = changesBetween(base, step, false)
    let byHand = heldBy(base)
    for (let done = 0; done <= changes.length; done++) {
      const { missing, conflict } = missingAt(target(byHand), changes)
      assert.deepEqual([missing, conflict], [changes.slice(done), undefined])
      let left = byHand
      for (const change of missing) left = run(left, change, added)
      assert.deepEqual(sorted(left), sorted(heldBy(step)))
      const next = changes[done]
      if (next) byHand = run(byHand, next, added)
    }
    base = step
  }
}
const sorted = (columns: Columns): unknown => [...columns].toSorted(([a], [b]) => (a < b ? -1 : 1))

describe('changes of one version', () => {
  const id = [1, 'id', 23] as const
  const [a, b] = [[2, 'a', 23] as const, [3, 'b', 23] as const]
  const cases: readonly (readonly [string, Parameters<typeof shapeOf>[0], Parameters<typeof shapeOf>[0]])[] = [
    ['a name left by one column and given to a new one', [id, a], [id, [2, 'b', 23], [3, 'a', 23]]],
    ['a dropped column whose name another takes, with another type', [id, a, b], [id, [2, 'b', 20]]],
    ['a chain of names', [id, a, b], [id, [2, 'b', 23], [3, 'c', 23]]],
    ['a chain of names the other way round', [id, a, b], [id, [2, 'c', 23], [3, 'a', 23]]],
    [
      'a chain into a dropped name, and the first name anew',
      [id, a, b, [4, 'c', 25]],
      [id, [2, 'b', 23], [3, 'c', 23], [5, 'a', 25]],
    ],
    ['a column dropped and added under the same name', [id, a], [id, [3, 'a', 25]]],
  ]
  for (const [name, before, after] of cases)
    it(`H26: ${name}: what is left to do at the target is told wherever a person stopped`, () => {
      check(shapeOf(before), shapeOf(after))
    })

  it('H26: names exchanged in one step cannot be followed: a table where it was done looks as before', () => {
    for (const after of [
      [id, [2, 'b', 23], [3, 'a', 23], [4, 'c', 23]],
      [id, [2, 'b', 20], [3, 'c', 23], [4, 'a', 23]],
    ] as const) {
      const before = shapeOf([id, a, b, [4, 'c', 23]])
      assert.match(unfollowable(before, shapeOf(after), [1]) ?? '', /column a took the name of another/)
      // And yet the statements that are told can be run.
      let columns = heldBy(before)
      for (const change of changesBetween(before, shapeOf(after))) columns = run(columns, change, () => -1)
      assert.deepEqual(sorted(columns), sorted(heldBy(shapeOf(after))))
    }
  })

  it('H26: whatever was dropped, renamed, added and widened at once, what is left to do is told wherever a person stopped', () => {
    const names = ['a', 'b', 'c', 'd', 'e']
    const columns = fc
      .uniqueArray(fc.integer({ min: 2, max: 8 }), { maxLength: 5 })
      .chain((numbers) =>
        fc.tuple(
          fc.constant(numbers.toSorted((x, y) => x - y)),
          fc.shuffledSubarray(names, { minLength: numbers.length, maxLength: numbers.length }),
          fc.array(fc.constantFrom(23, 20, 25), { minLength: numbers.length, maxLength: numbers.length }),
        ),
      )
    const shape = columns.map(([numbers, own, kinds]) =>
      shapeOf([id, ...numbers.map((number, i) => [number, own[i] ?? '', kinds[i] ?? 23] as const)]),
    )
    fc.assert(
      fc.property(shape, shape, (before, after) => {
        fc.pre(unfollowable(before, after, [1]) === undefined)
        check(before, after)
      }),
      { numRuns: 2000 },
    )
  })
})
