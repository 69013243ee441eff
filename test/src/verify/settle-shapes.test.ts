import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Failure } from '../../../src/errors.ts'
import type { Position, ShapeEntry, ShapeKind, TableSchema } from '../../../src/model.ts'
import type { ShapesLine } from '../../../src/verify/journal.ts'
import { settleShapes } from '../../../src/verify/settle-shapes.ts'

const never = new AbortController().signal

function made(...names: readonly string[]): readonly ShapeEntry[] {
  return names.map((name): ShapeEntry => {
    const kind: ShapeKind = name.startsWith('index ') ? 'index' : 'column'
    return { kind, table: 's.t', name, text: name, parts: { nullable: 'yes' } }
  })
}

type World = {
  /** What the target gets of what was there when all was applied; as the source is then unless said. */
  readonly keeps?: boolean
  readonly applied?: () => Promise<void>
  readonly limitMs?: number
  /** Rounds in which the stream has not met the table as it is. */
  readonly unmet?: number
  readonly streams?: boolean
}

/** A source that changes its columns before each look, and a target that is as the source was when all was applied last. */
async function look(
  source: readonly (readonly ShapeEntry[])[],
  target: readonly ShapeEntry[],
  world: World = {},
): Promise<ShapesLine & { readonly looks: number }> {
  let looks = 0
  let rounds = 0
  let seen = source[0] ?? []
  let there = target
  const line = await settleShapes(
    {
      source: {
        shape: async () => (seen = source[Math.min(looks++, source.length - 1)] ?? []),
        tables: async () => [schema(['a', 'b'])],
        versions: async () => [schema(rounds++ < (world.unmet ?? 0) ? ['a'] : ['a', 'b'])],
      },
      sink: { shape: async () => there },
    },
    [schema(['a', 'b'])],
    {
      visible: async () => '' as Position,
      async applied() {
        await world.applied?.()
        if (world.keeps !== false && rounds > (world.unmet ?? 0)) there = seen
      },
    },
    { streams: world.streams ?? true, live: () => true },
    { limitMs: world.limitMs ?? 60_000, lastsMs: 20, pollMs: 1 },
    never,
  )
  return { ...line, looks }
}

function schema(columns: readonly string[]): TableSchema {
  return {
    table: { schema: 's', name: 't' },
    version: 1,
    columns: columns.map((name) => ({ name, type: 'integer', form: 'int32', nullable: true })),
    key: [],
    before: 'row',
    shape: 'columns',
    pinned: true,
  }
}

const told = ({ verdict, differences }: ShapesLine): readonly string[] => [
  verdict,
  ...differences.map(({ severity, name, what }) => `${severity} ${name} ${what}`),
]

describe('H20: what tables are made of', () => {
  test('that is on its way is waited for', async () => {
    const line = await look([made('a', 'b')], made('a'))
    assert.deepEqual(told(line), ['equal'])
    assert.equal(line.looks, 2)
  })

  test('and stays different is named', async () => {
    const line = await look([made('a', 'b')], made('a'), { keeps: false })
    assert.deepEqual(told(line), ['different', 'blocker b missing'])
  })

  test('that the stream has not met is waited for, however long that lasts', async () => {
    const line = await look([made('a', 'b')], made('a'), { unmet: 50 })
    assert.deepEqual(told(line), ['equal'])
    assert.equal(line.looks, 52)
  })

  test('that no stream will bring is named, though none has met it', async () => {
    const line = await look([made('a', 'b')], made('a'), { keeps: false, unmet: 1e9, streams: false })
    assert.deepEqual(told(line), ['different', 'blocker b missing'])
  })

  test('that the changes do not bring is named at once', async () => {
    const line = await look([made('a', 'index i')], made('a'))
    assert.deepEqual(told(line), ['equal', 'warning index i missing'])
    assert.equal(line.looks, 1)
  })

  test('and changes while it is looked at is looked at again', async () => {
    const line = await look([made('a', 'b'), made('a', 'b', 'c'), made('a', 'b', 'c', 'd')], made('a'))
    assert.deepEqual(told(line), ['equal'])
    assert.equal(line.looks, 4)
  })

  test('is unknown where nobody knows what the target lacks', async () => {
    const applied = async (): Promise<void> => {
      throw new Failure('NOT_RUNNING', { observed: 'no process runs the pipeline' })
    }
    const line = await look([made('a', 'b', 'index i')], made('a'), { applied })
    assert.deepEqual(told(line), ['unknown', 'unknown b missing', 'warning index i missing'])
    assert.match(line.differences[0]?.why ?? '', /NOT_RUNNING/)
  })

  test('is unknown where the target does not come up in time', async () => {
    let late = (): void => {}
    const applied = async (): Promise<void> =>
      await new Promise((_, reject) => {
        late = () => reject(new Error('over'))
        setTimeout(late, 50)
      })
    const line = await look([made('a', 'b')], made('a'), { applied, limitMs: 1 })
    assert.deepEqual(told(line), ['unknown', 'unknown b missing'])
    assert.match(line.differences[0]?.why ?? '', /the target is behind/)
    const unmet = await look([made('a', 'b')], made('a'), { unmet: 1e9, limitMs: 50 })
    assert.deepEqual(told(unmet), ['unknown', 'unknown b missing'])
    assert.match(unmet.differences[0]?.why ?? '', /has not met a change of the table/)
  })

  test('is unknown where it cannot be read, or nobody can', async () => {
    const refused = async (): Promise<readonly ShapeEntry[]> => {
      throw new Failure('NO_RIGHTS', { observed: 'not for you' })
    }
    const shape = async (): Promise<readonly ShapeEntry[]> => made('a')
    const witness = { visible: async () => '' as Position, applied: async () => {} }
    const situation = { streams: true, live: () => true }
    const limits = { limitMs: 1000, lastsMs: 1, pollMs: 1 }
    const tables = async (): Promise<readonly TableSchema[]> => []
    for (const [ends, why] of [
      [{ source: { tables, shape }, sink: { shape: refused } }, /NO_RIGHTS: not for you/],
      [{ source: { tables, shape: refused }, sink: { shape } }, /NO_RIGHTS: not for you/],
      [{ source: { tables }, sink: { shape } }, /source/],
      [{ source: { tables, shape }, sink: {} }, /target/],
    ] as const) {
      const line = await settleShapes(ends, [], witness, situation, limits, never)
      assert.deepEqual(told(line), ['unknown'])
      assert.match(line.why ?? '', why)
    }
  })
})
