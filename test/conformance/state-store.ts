import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { describe, it } from 'node:test'
import type { StateStore } from '../../src/coordinate/state-store.ts'

/** What every state store must do. `open` gives one more handle on the same store; several are open at once. `skip`: why it cannot run here. */
export function stateStoreConformance(
  name: string,
  open: () => Promise<StateStore>,
  skip: string | false = false,
): void {
  describe(`state store: ${name}`, { skip }, () => {
    const never = new AbortController().signal
    const fresh = (): string => `conformance/${randomUUID()}`

    it('has nothing under a new key', async () => {
      await using store = await open()
      assert.equal(await store.get(fresh(), never), undefined)
    })

    it('creates a key once', async () => {
      await using store = await open()
      const key = fresh()
      const revision = await store.put(key, { by: 'first' }, 0, never)
      assert.ok(revision !== undefined && revision > 0)
      assert.equal(await store.put(key, { by: 'second' }, 0, never), undefined)
      assert.deepEqual(await store.get(key, never), { value: { by: 'first' }, revision })
    })

    it('writes only over the revision it is given, which rises', async () => {
      await using store = await open()
      const key = fresh()
      const first = await store.put(key, 1, 0, never)
      assert.ok(first !== undefined)
      const second = await store.put(key, 2, first, never)
      assert.ok(second !== undefined && second > first)
      assert.equal(await store.put(key, 3, first, never), undefined)
      assert.equal(await store.put(key, 3, second + 1, never), undefined)
      assert.deepEqual(await store.get(key, never), { value: 2, revision: second })
    })

    it('does not create a key over a revision it never had', async () => {
      await using store = await open()
      const key = fresh()
      assert.equal(await store.put(key, 1, 7, never), undefined)
      assert.equal(await store.get(key, never), undefined)
    })

    it('shows a write to other handles at once', async () => {
      await using one = await open()
      await using other = await open()
      const key = fresh()
      const revision = await one.put(key, 'seen', 0, never)
      assert.deepEqual(await other.get(key, never), { value: 'seen', revision })
    })

    it('lets one of many writers win', async () => {
      const handles = await Promise.all([open(), open(), open()])
      try {
        const key = fresh()
        for (let round = 0, at = 0; round < 5; round++) {
          const answers = await Promise.all(
            Array.from({ length: 12 }, async (_, i) => {
              const answer = await handles[i % handles.length]?.put(key, { writer: i }, at, never)
              return { i, answer }
            }),
          )
          const won = answers.filter(({ answer }) => answer !== undefined)
          assert.equal(won.length, 1, `round ${round}`)
          const [winner] = won
          assert.ok(winner?.answer !== undefined && winner.answer > at)
          at = winner.answer
          assert.deepEqual(await handles[0]?.get(key, never), { value: { writer: winner.i }, revision: at })
        }
      } finally {
        for (const handle of handles) await handle[Symbol.asyncDispose]()
      }
    })

    it('writes several keys at once, or none of them', async () => {
      await using store = await open()
      const [one, two, three] = [fresh(), fresh(), fresh()]
      const revision = await store.put(one, 1, 0, never)
      assert.ok(revision !== undefined)
      const writes = [
        { key: two, value: { of: 'two', text: '\u0000' }, expected: 0 },
        { key: one, value: 2, expected: revision },
      ]
      for (const lost of [
        { key: three, value: 3, expected: 1 },
        { key: one, value: 3, expected: 0 },
        { key: one, value: 3, expected: revision + 1 },
      ]) {
        const all = [...writes.filter(({ key }) => key !== lost.key), lost]
        assert.equal(await store.putAll(all, never), false)
        assert.deepEqual(
          [await store.get(one, never), await store.get(two, never)],
          [{ value: 1, revision }, undefined],
        )
      }
      assert.equal(await store.putAll(writes, never), true)
      assert.deepEqual((await store.get(one, never))?.value, 2)
      assert.deepEqual((await store.get(two, never))?.value, writes[0]?.value)
      assert.equal(await store.putAll(writes, never), false)
    })

    it('keeps JSON as it is', async () => {
      await using store = await open()
      for (const value of [
        null,
        false,
        0,
        -0.5,
        2 ** 53 - 1,
        '',
        '0',
        'naïve 🙂 \' " \\ \n',
        [],
        {},
        [1, [null, { a: [] }]],
        { 'odd key.%_': { nested: ['x'.repeat(100_000)] } },
      ]) {
        const key = fresh()
        const revision = await store.put(key, value, 0, never)
        assert.deepEqual(await store.get(key, never), { value, revision })
      }
    })

    it('shares no object with its callers', async () => {
      await using store = await open()
      const key = fresh()
      const value = { list: [1] }
      await store.put(key, value, 0, never)
      value.list.push(2)
      const found = await store.get(key, never)
      assert.deepEqual(found?.value, { list: [1] })
    })

    it('lists by prefix, sorted, and takes a prefix literally', async () => {
      await using store = await open()
      const base = fresh()
      const keys = ['/a_b', '/a%b', '/aXb', '/a\\b', '/é', '/B', '', '/a_b/deep']
      for (const key of keys) await store.put(base + key, key, 0, never)
      const listed = async (prefix: string): Promise<readonly string[]> =>
        (await store.list(base + prefix, never)).map(({ key }) => key.slice(base.length))
      const sorted = (all: readonly string[]): readonly string[] => [...all].sort((a, b) => (a < b ? -1 : 1))
      assert.deepEqual(await listed(''), sorted(keys))
      assert.deepEqual(await listed('/a_'), ['/a_b', '/a_b/deep'])
      assert.deepEqual(await listed('/a%'), ['/a%b'])
      assert.deepEqual(await listed('/a\\'), ['/a\\b'])
      assert.deepEqual(await listed('/none'), [])
      const [first] = await store.list(base + '/a%', never)
      assert.deepEqual(first, { key: `${base}/a%b`, ...(await store.get(`${base}/a%b`, never)) })
    })

    it('removes what begins so, taken literally, and nothing else; a key that is made again begins anew', async () => {
      await using store = await open()
      const base = fresh()
      for (const key of ['/a_b/1', '/a_b/2', '/aXb/1', '/a_']) await store.put(base + key, 1, 0, never)
      await store.put(`${base}/a_b/1`, 2, 1, never)
      await store.remove(`${base}/a_b/`, never)
      await store.remove(`${base}/a_b/`, never)
      assert.deepEqual(
        (await store.list(base, never)).map(({ key }) => key.slice(base.length)),
        ['/aXb/1', '/a_'],
      )
      assert.equal(await store.put(`${base}/a_b/1`, 3, 2, never), undefined)
      assert.equal(await store.put(`${base}/a_b/1`, 3, 0, never), 1)
    })

    it('rejects when its signal has aborted, and writes nothing', async () => {
      await using store = await open()
      const key = fresh()
      const aborted = AbortSignal.abort()
      await assert.rejects(store.get(key, aborted))
      await assert.rejects(store.list(key, aborted))
      await assert.rejects(store.put(key, 1, 0, aborted))
      await assert.rejects(store.remove(key, aborted))
      assert.equal(await store.get(key, never), undefined)
    })
  })
}
