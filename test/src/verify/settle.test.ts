import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import type { TableReader } from '../../../src/connector.ts'
import type { Position, TableSchema } from '../../../src/model.ts'
import { rowsOf } from '../../../src/rows.ts'
import { cellsOf } from '../../../src/verify/compare.ts'
import { judge, settle, type Witness } from '../../../src/verify/settle.ts'

const never = new AbortController().signal
const schema: TableSchema = {
  table: { schema: 'public', name: 't' },
  version: 1,
  columns: [
    { name: 'id', type: 'integer', form: 'int32', nullable: false },
    { name: 'value', type: 'text', form: 'text', nullable: true },
  ],
  key: [0],
  before: 'key',
  shape: 'columns',
  pinned: false,
}

/** One row of a source, whose commits stand in its log before they are visible, and of a target that applies the log as it is sent. `choices` decide
 *  what happens between any two steps of whoever looks. */
function world(choices: readonly number[]) {
  const log: (string | null)[] = ['0']
  let visible = 0
  let applied = 0
  let target: { value: string | null; version: number } = { value: '0', version: 0 }
  let versions = 0
  let next = 0
  const write = (value: string | null): void => void (target = { value, version: ++versions })
  const commit = (): void => void log.push(log.length % 4 === 3 ? null : String(log.length % 3))
  const see = (): void => void (visible = Math.min(visible + 1, log.length - 1))
  const apply = (): void => {
    if (applied < log.length - 1) write(log[++applied] ?? null)
  }
  /** Some of what may happen, while there are choices left. */
  const happen = (): void => {
    for (let left = (choices[next++] ?? 0) % 5; left > 0; left--) {
      const choice = (choices[next++] ?? 0) % 3
      if (choice === 0) commit()
      else if (choice === 1) see()
      else apply()
    }
  }
  const reader = (value: () => { value: string | null; version: number }): TableReader => ({
    ranges: async () => [],
    split: async (_, range) => [range],
    rows: () => assert.fail('not asked'),
    copies: () => assert.fail('not asked'),
    async lookup() {
      happen()
      const now = value()
      const there = now.value !== null
      return { ...rowsOf([there ? cellsOf(['1', now.value]) : []]), versions: [there ? String(now.version) : ''] }
    },
    [Symbol.asyncDispose]: async () => {},
  })
  const witness: Witness = {
    async visible() {
      const place = log.length - 1
      happen()
      while (visible < place) {
        see()
        happen()
      }
      return place.toString(16).padStart(16, '0') as Position
    },
    async applied(position) {
      happen()
      while (applied < Number.parseInt(position, 16)) {
        apply()
        happen()
      }
    },
  }
  return {
    witness,
    source: reader(() => ({ value: log[visible] ?? null, version: visible })),
    target: reader(() => target),
    now: () => target.value,
    corrupt: () => write('spoilt'),
  }
}

const choices = fc.array(fc.nat(19), { maxLength: 120 })

describe('settling', () => {
  it('H20: never takes what is under way for a difference, whatever happens between two looks', async () => {
    await fc.assert(
      fc.asyncProperty(choices, async (choices) => {
        const { source, target, witness } = world(choices)
        const [one] = await settle({ source, target }, schema, [{ key: ['1'] }], witness, 1000, never)
        assert.equal(one?.kind, 'same')
      }),
      { numRuns: 3_000 },
    )
  })

  it('never takes a row that stays different for the same, and names it once nobody writes to it', async () => {
    await fc.assert(
      fc.asyncProperty(choices, async (choices) => {
        const { source, target, witness, now, corrupt } = world(choices)
        corrupt()
        const [one] = await settle({ source, target }, schema, [{ key: ['1'] }], witness, 1000, never)
        if (now() === 'spoilt') assert.equal(one?.kind, 'different')
        if (one?.kind === 'different') assert.deepEqual(one.target.row, ['1', 'spoilt'])
      }),
      { numRuns: 3_000 },
    )
  })

  it('is unknown where a commit stays invisible, or the target stays behind, and says which', async () => {
    const wait = async (signal: AbortSignal): Promise<never> =>
      await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error)))
    for (const [step, told] of [
      ['visible', /a commit at the source/],
      ['applied', /the target had not applied/],
    ] as const) {
      const { source, target, witness, corrupt } = world([])
      corrupt()
      const stuck: Witness = {
        ...witness,
        [step]: async (...args: unknown[]) => await wait(args.at(-1) as AbortSignal),
      }
      const [one] = await settle({ source, target }, schema, [{ key: ['1'] }], stuck, 50, never)
      assert.equal(one?.kind, 'unknown')
      assert.match(one.why, told)
    }
  })

  it('settles a row that changes faster than the waits take, by what both ends have shown', async () => {
    for (const spoilt of [false, true]) {
      let clock = 0
      // The target follows some changes behind, and now and then in leaps.
      const at = (value: number): TableReader => ({
        ranges: async () => [],
        split: async (_, range) => [range],
        rows: () => assert.fail('not asked'),
        copies: () => assert.fail('not asked'),
        lookup: async () => ({ ...rowsOf([cellsOf(['1', String(value)])]), versions: [String(value)] }),
        [Symbol.asyncDispose]: async () => {},
      })
      const source: TableReader = { ...at(0), lookup: async (...asked) => await at(++clock).lookup(...asked) }
      const target: TableReader = {
        ...at(0),
        lookup: async (...asked) =>
          await at((clock - 3 - (clock % 4)) * (spoilt ? -1 : 1) - 1_000 * Number(spoilt)).lookup(...asked),
      }
      const witness: Witness = {
        visible: async () => '0' as Position,
        applied: async () => await new Promise((resolve) => setTimeout(resolve, 60)),
      }
      const [one] = await settle({ source, target }, schema, [{ key: ['1'] }], witness, 1_000, never)
      assert.equal(one?.kind, spoilt ? 'unknown' : 'same')
    }
  })

  it('judges by versions where texts differ', () => {
    const found = (text: string, version: string) => ({ row: ['1', text], copies: 1, versions: version })
    assert.equal(judge(found('a', '1'), found('b', '1'), found('b', '1'), found('a', '1')), 'different')
    assert.equal(judge(found('a', '1'), found('b', '1'), found('b', '1'), found('a', '2')), 'again')
    assert.equal(judge(found('a', '1'), found('b', '1'), found('b', '2'), found('a', '1')), 'again')
    assert.equal(judge(found('a', '1'), found('b', '1'), found('a', '2'), found('c', '2')), 'same')
    assert.equal(judge(undefined, found('b', '1'), found('b', '1'), undefined), 'different')
    assert.equal(judge(undefined, undefined, undefined, undefined), 'same')
  })
})
