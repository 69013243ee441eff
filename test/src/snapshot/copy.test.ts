import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'node:test'
import { leases } from '../../../src/coordinate/lease.ts'
import { asFailure, Failure } from '../../../src/errors.ts'
import { partitionName } from '../../../src/model.ts'
import { copyRound, type CopyParts } from '../../../src/snapshot/copy.ts'
import { noLeaks } from '../../support/leaks.ts'
import { items, notes, memoryWay, orders, tables, ttl, writer, type Way } from './memory-way.ts'

noLeaks()

const never = new AbortController().signal
const allChunks = 6 // 3 of orders, 2 of items, 1 of notes

async function equalAtLast(way: Way, signal: AbortSignal): Promise<void> {
  await way.settled(signal)
  const { source, target } = way.contents()
  assert.deepEqual(target, source)
  const copies = await way.sink.copies(signal)
  assert.deepEqual(
    copies.map(({ live }) => live),
    tables.map(() => true),
  )
}

/** A step at which the copy's process dies: everything it had begun fails, nothing of what it would do next is done. */
function crashAt(count: number, work: () => unknown): { readonly step: () => void; readonly passed: () => number } {
  let passed = 0
  return {
    passed: () => passed,
    step() {
      work()
      if (++passed >= count) throw new Failure('SERVER_UNREACHABLE', { observed: `died at step ${count}` })
    },
  }
}

async function dies(round: Promise<unknown>): Promise<boolean> {
  try {
    await round
    return false
  } catch (error) {
    if (asFailure(error).code !== 'SERVER_UNREACHABLE') throw error
    return true
  }
}

test('a first copy under changes ends equal and live', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  const write = writer(way.database)
  assert.equal(await copyRound(way.parts(write), way.first, { epoch: 1, signal }, never), 'done')
  await equalAtLast(way, signal)
})

test('a copy that dies at any step goes on in a new round, and ends equal', async () => {
  for (let step = 1; ; step++) {
    const signal = AbortSignal.timeout(20_000)
    await using way = await memoryWay(signal)
    const write = writer(way.database)
    const crash = crashAt(step, write)
    const died = await dies(copyRound(way.parts(crash.step), way.first, { epoch: 1, signal }, never))
    assert.equal(await copyRound(way.parts(write), undefined, { epoch: 2, signal }, never), 'done', `step ${step}`)
    await equalAtLast(way, signal)
    if (died) continue
    assert.ok(step > 20, `only ${step} steps`)
    return
  }
})

test('a resumed copy that dies at any step is resumed again, and ends equal', async () => {
  for (let step = 1; ; step += 2) {
    const signal = AbortSignal.timeout(20_000)
    await using way = await memoryWay(signal)
    const write = writer(way.database)
    // Some chunks are in, under the first snapshot.
    await dies(copyRound(way.parts(crashAt(8, write).step), way.first, { epoch: 1, signal }, never))
    const died = await dies(copyRound(way.parts(crashAt(step, write).step), undefined, { epoch: 2, signal }, never))
    assert.equal(await copyRound(way.parts(write), undefined, { epoch: 3, signal }, never), 'done', `step ${step}`)
    await equalAtLast(way, signal)
    if (!died) return
  }
})

test('an answer that is lost is no harm', async () => {
  for (const call of ['setCopies', 'load'] as const) {
    const signal = AbortSignal.timeout(20_000)
    await using way = await memoryWay(signal)
    const write = writer(way.database)
    way.sink.inject(call, { kind: 'failAfterWrite' })
    assert.ok(await dies(copyRound(way.parts(write), way.first, { epoch: 1, signal }, never)))
    assert.equal(await copyRound(way.parts(write), undefined, { epoch: 2, signal }, never), 'done')
    await equalAtLast(way, signal)
  }
})

test('chunks that are in are not read again', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  let loads = 0
  const count = (name: string): void => void (name === 'after load' && loads++)
  const stop = new AbortController()
  const parts = { ...way.parts(count), parallel: 1 }
  const stopping: CopyParts = { ...parts, seen: (_, __, rows) => rows > 0 && loads === 2 && stop.abort() }
  assert.equal(await copyRound(stopping, way.first, { epoch: 1, signal }, stop.signal), 'stopped')
  assert.equal(loads, 2)
  assert.equal(await copyRound(way.parts(count), undefined, { epoch: 1, signal }, never), 'done')
  assert.equal(loads, allChunks)
  await equalAtLast(way, signal)
})

test('a stop while any chunk is in hand, the last but one too, leaves the rest to be copied', async () => {
  for (let last = 1; last <= allChunks; last++) {
    const signal = AbortSignal.timeout(20_000)
    await using way = await memoryWay(signal)
    const stop = new AbortController()
    let loads = 0
    const parts = way.parts((name) => {
      if (name === 'after load' && ++loads === last) stop.abort()
    })
    const outcome = await copyRound({ ...parts, parallel: 1 }, way.first, { epoch: 1, signal }, stop.signal)
    assert.equal(loads, last, 'the chunk in hand is finished, no other is begun')
    assert.equal(outcome, last < allChunks ? 'stopped' : 'done')
    const live = (await way.sink.copies(signal)).filter((copy) => copy.live)
    assert.equal(live.length, outcome === 'done' ? tables.length : 0)
    assert.equal(await copyRound(way.parts(), undefined, { epoch: 1, signal }, never), 'done')
    await equalAtLast(way, signal)
  }
})

test('before its snapshot nothing of a table is applied, while it is copied nothing after the snapshot', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  way.database.commit({ kind: 'insert', table: orders, row: ['900', 'early', null, null] })
  const ids = (): readonly unknown[] => way.sink.rows(orders.table).map(([id]) => id)
  await sleep(50)
  assert.deepEqual(ids(), [])
  const parts = way.parts()
  await way.first?.[Symbol.asyncDispose]()
  const seen: unknown[][] = []
  const watching: CopyParts = {
    ...parts,
    async complete() {
      way.database.commit({ kind: 'insert', table: orders, row: ['901', 'late', null, null] })
      await sleep(50)
      seen.push([...ids()])
    },
  }
  await copyRound(watching, undefined, { epoch: 1, signal }, never)
  assert.equal(seen[0]?.includes('900'), true)
  assert.equal(seen[0]?.includes('901'), false)
  await equalAtLast(way, signal)
})

test('when the last chunk is in, the target is one exact state of the source; kept held, it stays so', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  const write = writer(way.database)
  await dies(copyRound(way.parts(crashAt(14, write).step), way.first, { epoch: 1, signal }, never))
  let state: unknown
  const parts = way.parts((name) => {
    if (name === 'after snapshot') state = way.contents().source
    else write()
  })
  const target: unknown[] = []
  const looking: CopyParts = { ...parts, keepHeld: true, complete: async () => void target.push(way.contents().target) }
  assert.equal(await copyRound(looking, undefined, { epoch: 2, signal }, never), 'done')
  assert.deepEqual(target, [state])
  write()
  await sleep(50)
  assert.deepEqual(way.contents().target, state)
  assert.ok((await way.sink.checkpoints(signal)).every(({ hold }) => hold !== undefined))
})

test('a table that is rewritten under the snapshot starts over, after the rest is copied', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  const write = writer(way.database)
  const loaded: string[] = []
  let loads = 0
  const parts = way.parts((name) => {
    write()
    if (name === 'before load' && ++loads === 2) {
      way.database.commit({ kind: 'truncate', tables: [orders] })
      way.database.commit({ kind: 'insert', table: orders, row: ['77', 'after', null, null] })
    }
    if (name === 'before startOver') loaded.push('startOver')
  })
  const watching: CopyParts = {
    ...parts,
    parallel: 1,
    emptied: async () => undefined,
    seen: ({ table }, _, rows) => rows > 0 && loaded.push(table.name),
  }
  assert.equal(await copyRound(watching, way.first, { epoch: 1, signal }, never), 'again')
  assert.deepEqual(loaded, ['orders', 'startOver', 'items', 'items', 'notes'])
  const live = (await way.sink.copies(signal)).filter((copy) => copy.live)
  assert.equal(live.length, 0)
  assert.equal(await copyRound(way.parts(write), undefined, { epoch: 1, signal }, never), 'done')
  await equalAtLast(way, signal)
})

test('H4: tables that are truncated all the time go live with the round, and a crash in between is no harm', async () => {
  for (let crash = 0; crash < 40; crash += 7) {
    const signal = AbortSignal.timeout(20_000)
    await using way = await memoryWay(signal)
    const write = writer(way.database)
    let n = 0
    let steps = 0
    const restless = (name: string): void => {
      write()
      if (!name.startsWith('before')) return
      way.database.commit({ kind: 'truncate', tables: n % 3 === 0 ? [orders, notes] : [orders] })
      for (let i = 0; i < 3; i++)
        way.database.commit({ kind: 'insert', table: orders, row: [`${i}`, `t${n}`, 'x', '0'] })
      way.database.commit({ kind: 'update', table: orders, key: ['1'], row: ['1', undefined, `t${n++}`, '1'] })
    }
    const dying = way.parts((name) => {
      restless(name)
      if (++steps === crash) throw new Error('crash')
    })
    const first = await copyRound(dying, way.first, { epoch: 1, signal }, never).catch((error: unknown) => error)
    if (first instanceof Error) {
      assert.equal(first.message, 'crash')
      assert.equal(await copyRound(way.parts(restless), undefined, { epoch: 2, signal }, never), 'done')
    } else assert.equal(first, 'done')
    await equalAtLast(way, signal)
  }
})

test('in a copy that stays at its snapshot, a table that is truncated under it starts over', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  let loads = 0
  const parts = way.parts((name) => {
    if (name === 'before load' && ++loads === 2) way.database.commit({ kind: 'truncate', tables: [orders] })
  })
  assert.equal(await copyRound({ ...parts, keepHeld: true }, way.first, { epoch: 1, signal }, never), 'again')
})

test('a chunk that another worker copies is waited for, and not copied twice', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  const other = await leases(way.store, 'other').acquire('chunk/1/public.items#0.1', ttl, signal)
  let loads = 0
  const parts = way.parts((name) => name === 'before load' && loads++)
  const watching: CopyParts = {
    ...parts,
    async tables() {
      // The other worker is as far as we are; it is done a while after us.
      const all = await parts.tables()
      setTimeout(() => void finish(), 3 * ttl)
      const finish = async (): Promise<void> => {
        const lane = await way.sink.lane(signal)
        const reader = await way.source.reader(way.first?.id ?? 'now', signal)
        const range = all.find(({ schema }) => schema === items || schema.table.name === 'items')?.plan.ranges[1]
        if (range === undefined || way.first === undefined) throw new Error('no range')
        const chunk = { ...range, id: 'public.items#0.1', snapshot: way.first.position, replace: false }
        const batches = reader.rows(items, chunk, signal)
        await lane.load(items, chunk, { kind: 'rows', batches }, other.epoch, signal)
        await other[Symbol.asyncDispose]()
      }
      return all
    },
  }
  assert.equal(await copyRound(watching, way.first, { epoch: 1, signal }, never), 'done')
  assert.equal(loads, allChunks - 1)
  await equalAtLast(way, signal)
})

test('a chunk that a dead worker had claimed is copied once its lease has run out', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  const held = { owner: 'dead', token: 'none', ttl, free: false }
  await way.store.put('lease/chunk/1/public.orders#0.2', held, 0, signal)
  const began = performance.now()
  assert.equal(await copyRound(way.parts(), way.first, { epoch: 1, signal }, never), 'done')
  assert.ok(performance.now() - began >= ttl)
  await equalAtLast(way, signal)
})

test('a chunk that loses its lease in the middle writes nothing', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  const until = Promise.withResolvers<void>()
  way.sink.inject('load', { kind: 'hold', until: until.promise })
  const round = copyRound({ ...way.parts(), parallel: 1 }, way.first, { epoch: 1, signal }, never)
  let key: string | undefined
  while (key === undefined) {
    await sleep(2, undefined, { signal })
    key = (await way.store.list('lease/chunk/', signal)).at(0)?.key
  }
  // Someone else's hand in the store.
  for (let done = false; !done;) {
    const found = await way.store.get(key, signal)
    const taken = { owner: 'other', token: 'other', ttl: 1, free: true }
    done = (await way.store.put(key, taken, found?.revision ?? 0, signal)) !== undefined
  }
  await assert.rejects(round, (error) => asFailure(error).code === 'LEASE_LOST')
  until.resolve()
  assert.deepEqual(way.sink.rows(orders.table), [])
  assert.equal(await copyRound(way.parts(), undefined, { epoch: 2, signal }, never), 'done')
  await equalAtLast(way, signal)
})

test('whoever drives a copy under an older epoch changes nothing', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  const write = writer(way.database)
  await dies(copyRound(way.parts(crashAt(14, write).step), way.first, { epoch: 7, signal }, never))
  const before = await way.sink.copies(signal)
  const holds = async (): Promise<unknown> =>
    (await way.sink.checkpoints(signal)).map((at) => [partitionName(at), at.hold])
  const held = await holds()
  const steps: string[] = []
  await assert.rejects(
    copyRound(
      way.parts((name) => steps.push(name)),
      undefined,
      { epoch: 6, signal },
      never,
    ),
    (error) => asFailure(error).code === 'FENCED',
  )
  assert.ok(!steps.includes('before snapshot'), 'nor does it ask the source for a snapshot')
  assert.deepEqual(await way.sink.copies(signal), before)
  assert.deepEqual(await holds(), held)
  assert.equal(await copyRound(way.parts(write), undefined, { epoch: 8, signal }, never), 'done')
  await equalAtLast(way, signal)
})

test('one table of several that fails for good ends the round with its own error', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  way.sink.inject('load', { kind: 'reject', error: new Failure('TARGET_SHAPE', { object: 'public.items' }) })
  way.sink.inject('load', { kind: 'slow', ms: 5000 }, 5)
  const began = performance.now()
  await assert.rejects(
    copyRound(way.parts(), way.first, { epoch: 1, signal }, never),
    (error) => asFailure(error).code === 'TARGET_SHAPE',
  )
  assert.ok(performance.now() - began < 2000, 'the others are ended at once')
})

test('where nothing is to be copied, no snapshot is taken', async () => {
  const signal = AbortSignal.timeout(20_000)
  await using way = await memoryWay(signal)
  await copyRound(way.parts(), way.first, { epoch: 1, signal }, never)
  const steps: string[] = []
  assert.equal(
    await copyRound(
      way.parts((name) => steps.push(name)),
      undefined,
      { epoch: 2, signal },
      never,
    ),
    'done',
  )
  assert.deepEqual(steps, [])
})
