import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { TableFilter } from '../../src/connector.ts'
import { memoryStore, type StateStore } from '../../src/coordinate/state-store.ts'
import { asFailure, type ErrorCode } from '../../src/errors.ts'
import type { TableSchema } from '../../src/model.ts'
import { leaveOut, partitionsOf, registeredTables, registerTables, startOver } from '../../src/registry.ts'
import { chunkId, missingChunks } from '../../src/snapshot/plan.ts'
import { memorySource } from '../support/memory-source.ts'
import { tableOf } from './apply/rows-for-tests.ts'

const signal = AbortSignal.timeout(10_000)
const orders = tableOf('orders')
const items = tableOf('items')
type Options = { readonly begun?: boolean; readonly partitions?: number; readonly include?: TableFilter }
const store = () => {
  const kept = memoryStore()
  return {
    kept,
    register: async (found: readonly TableSchema[], options: Options = {}, into: StateStore = kept) => {
      const { begun = true, partitions = 8, include = () => true } = options
      const database = memorySource([orders, items, ...found])
      for (let n = 0; n < 25; n++) database.commit({ kind: 'insert', table: orders, row: [`${n}`] })
      const reader = await database.open().reader('now', signal)
      const limits = { partitions, chunkRows: 10, begun, followed: new Set<string>() }
      return await registerTables('shop', found, include, into, reader, limits, signal)
    },
  }
}
type Register = ReturnType<typeof store>['register']
const fails = async (work: Promise<unknown>, code: ErrorCode, observed: RegExp): Promise<void> => {
  await assert.rejects(work, (error) => {
    const failure = asFailure(error)
    assert.equal(failure.code, code)
    assert.match(failure.facts.observed ?? '', observed)
    return true
  })
}

test('ranges, topic, partitions and pinning are decided once, and read again as they were', async () => {
  const { kept, register } = store()
  const first = await register([orders, items])
  assert.deepEqual(
    first.map(({ route, plan }) => [route.topic, partitionsOf(route).length, plan.ranges.length]),
    [
      ['shop.public.orders', 1, 3],
      ['shop.public.items', 1, 1],
    ],
  )
  const again = await register([items, orders], { partitions: 100 })
  const sorted = (all: typeof first): unknown => all.toSorted((a, b) => (a.route.topic < b.route.topic ? -1 : 1))
  assert.deepEqual(sorted(again), sorted(first))
  assert.deepEqual(sorted(await registeredTables(kept, signal)), sorted(first))
})

test('a table that came later is recorded beside the others', async () => {
  const { register } = store()
  const [first] = await register([orders])
  const both = await register([orders, items])
  assert.deepEqual(both[0], first)
  assert.equal(both[1]?.route.topic, 'shop.public.items')
})

test('a table that is gone, or no longer wanted, is named', async () => {
  const { register } = store()
  await register([orders, items])
  await fails(register([orders]), 'TABLE_MISSING', /no longer at the source/)
  await fails(register([orders], { include: () => false }), 'TABLE_MISSING', /no longer among tables.include/)
})

test('a table that is left out is closed before it is forgotten, and taken in again with its topic and a copy of its own', async () => {
  const { kept, register } = store()
  const [, first] = await register([orders, items])
  const closed: string[] = []
  const close = async ({ name }: { readonly name: string }): Promise<void> => {
    closed.push(name)
    if (closed.length === 1) throw new Error('injected')
  }
  const without = ({ name }: { readonly name: string }): boolean => name !== 'items'
  await assert.rejects(leaveOut(kept, without, close, signal), /injected/)
  // Wanted again before the target had heard of it.
  const again = await leaveOut(kept, () => true, close, signal)
  assert.deepEqual(again, [{ ...first, left: 'closing' }])
  assert.deepEqual(await leaveOut(kept, without, close, signal), [])
  assert.deepEqual(closed, ['items', 'items'])
  const names = async (): Promise<unknown> => (await registeredTables(kept, signal)).map(({ schema }) => schema)
  assert.deepEqual(await names(), [orders])
  assert.equal((await register([orders], { include: without })).length, 1)
  const [, back] = await register([orders, { ...items, pinned: true }], { partitions: 100 })
  assert.deepEqual(back?.route, { ...first?.route, pinned: true })
  assert.equal(back?.plan.generation, 1)
  assert.deepEqual(await names(), [{ ...items, pinned: true }, orders])
})

test('a table that was changed is named with what is different; its version alone is no change', async () => {
  const { register } = store()
  await register([orders, items])
  await register([{ ...orders, version: 9 }, items])
  const [id, ...rest] = orders.columns
  if (id === undefined) throw new Error('no columns')
  const less = { ...orders, columns: [id, ...rest.slice(1)] }
  await fails(register([less, items]), 'TABLE_CHANGED', /without a text$/)
  const more = { ...orders, columns: [...orders.columns, { ...id, name: 'extra', nullable: true }] }
  await fails(register([more, items]), 'TABLE_CHANGED', /with extra bigint$/)
  const other = { ...orders, columns: [{ ...id, type: 'integer' }, ...rest] }
  await fails(register([other, items]), 'TABLE_CHANGED', /without id bigint not null; with id integer not null/)
  await fails(register([{ ...orders, key: [1] }, items]), 'TABLE_CHANGED', /another key/)
  await fails(register([{ ...orders, before: 'row' }, items]), 'TABLE_CHANGED', /replica identity/)
})

test('until the pipeline has begun everything is decided anew', async () => {
  const { register } = store()
  await register([orders, items], { begun: false })
  const changed = { ...orders, key: [1] }
  const all = await register([changed], { begun: false })
  assert.deepEqual(
    all.map(({ schema }) => schema),
    [changed],
  )
  await fails(register([orders]), 'TABLE_CHANGED', /another key/)
})

test('a copy that starts over has the next generation, and none of its chunks counts as done', async () => {
  const { kept, register } = store()
  await register([orders])
  await startOver(kept, orders, signal)
  const [table] = await registeredTables(kept, signal)
  if (table === undefined) throw new Error('gone')
  assert.equal(table.plan.generation, 1)
  const before = new Set([0, 1, 2].map((i) => chunkId(orders.table, 0, i)))
  assert.equal(missingChunks(table.plan, before, '01' as never, true).length, 3)
  await startOver(kept, items, signal) // never recorded: nothing to start over
})

test('whoever writes at the same time wins or loses: nobody goes by what he could not record', async () => {
  const works: Readonly<Record<string, (raced: StateStore, register: Register) => Promise<unknown>>> = {
    'a table that is new': async (raced, register) => await register([orders, items], {}, raced),
    'a start that came to nothing': async (raced, register) => await register([orders], { begun: false }, raced),
    'a table that is left out': async (raced) =>
      await leaveOut(
        raced,
        () => false,
        async () => {},
        signal,
      ),
    'a copy that starts over': async (raced) => await startOver(raced, orders, signal),
  }
  for (const [what, work] of Object.entries(works)) {
    for (const at of [1, 2]) {
      const { kept, register } = store()
      await register([orders])
      let puts = 0
      const raced: StateStore = {
        ...kept,
        async put(key, value, expected, given) {
          if (++puts === at) await kept.put(key, (await kept.get(key, given))?.value ?? null, expected, given)
          return await kept.put(key, value, expected, given)
        },
        async putAll(writes, given) {
          const [first] = writes
          if (++puts === at && first) await kept.put(first.key, { by: 'another' }, first.expected, given)
          return await kept.putAll(writes, given)
        },
      }
      const done = work(raced, register)
      if (at === 1) await fails(done, 'FENCED', /another worker wrote it/)
      else await done.catch((error: unknown) => assert.equal(asFailure(error).code, 'FENCED', what))
      assert.ok(puts > 0, what)
    }
  }
})
