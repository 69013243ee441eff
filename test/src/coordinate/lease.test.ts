import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import { leases, type Clock, type Sleep } from '../../../src/coordinate/lease.ts'
import { memoryStore, type StateStore } from '../../../src/coordinate/state-store.ts'
import type { Lease } from '../../../src/coordinate/lease.ts'
import { virtualTime } from './virtual-time.ts'

const never = new AbortController().signal
const ttl = 3000

/** What befalls one call of a worker to the store. */
type Fate = {
  /** Milliseconds before and after it takes effect. */
  readonly before: number
  readonly after: number
  readonly end: 'answer' | 'lost-before' | 'lost-after' | 'hangs'
}
/** Mostly quick: only then does a successor look soon after a renewal, and every mistake shows. */
const delay = fc.oneof({ arbitrary: fc.nat(20), weight: 4 }, { arbitrary: fc.nat(950), weight: 1 })
const fate: fc.Arbitrary<Fate> = fc.record({
  before: delay,
  after: delay,
  end: fc.oneof(
    { arbitrary: fc.constant('answer' as const), weight: 12 },
    { arbitrary: fc.constantFrom('lost-before' as const, 'lost-after' as const, 'hangs' as const), weight: 2 },
  ),
})
/** While it lasts nothing gets through to the store, and no answer back. */
type Outage = { readonly from: number; readonly length: number }
type Worker = {
  readonly outages: readonly Outage[]
  readonly fates: readonly Fate[]
  readonly work: readonly number[]
  readonly speed: number
}
const worker: fc.Arbitrary<Worker> = fc.record({
  fates: fc.array(fate, { minLength: 4, maxLength: 40 }),
  outages: fc.array(fc.record({ from: fc.nat(20_000), length: fc.nat(12_000) }), { maxLength: 3 }),
  work: fc.array(fc.nat(15_000), { minLength: 1, maxLength: 4 }),
  /** Clocks that go a little fast or slow. */
  speed: fc.double({ min: 0.98, max: 1.02, noNaN: true }),
})

/** A store at the end of a bad line. An abandoned call still takes effect. */
function badLine(
  store: StateStore,
  { fates, outages }: Pick<Worker, 'fates' | 'outages'>,
  { clock, sleep }: { readonly clock: Clock; readonly sleep: Sleep },
  onPut: (value: unknown) => void,
): StateStore {
  let calls = 0
  const pass = async (): Promise<void> => {
    const now = clock()
    const outage = outages.find(({ from, length }) => now >= from && now < from + length)
    if (!outage) return
    await sleep(outage.from + outage.length - now, never)
    throw new Error('cut off')
  }
  const through = async <T>(call: () => Promise<T>, signal: AbortSignal): Promise<T> => {
    signal.throwIfAborted()
    const { before, after, end } = fates[calls++ % fates.length] ?? { before: 0, after: 0, end: 'answer' }
    const arriving = sleep(before, never).then(async () => {
      await pass()
      if (end === 'lost-before') throw new Error('lost before')
      const answer = await call()
      await sleep(after, never)
      await pass()
      if (end === 'lost-after') throw new Error('lost after')
      if (end === 'hangs') await sleep(20_000, never)
      return answer
    })
    arriving.catch(() => {})
    const gone = new Promise<never>((_, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
    })
    return await Promise.race([arriving, gone])
  }
  return {
    get: (key, signal) => through(() => store.get(key, never), signal),
    list: (prefix, signal) => through(() => store.list(prefix, never), signal),
    put: (key, value, expected, signal) =>
      through(async () => {
        const revision = await store.put(key, value, expected, never)
        if (revision !== undefined) onPut(value)
        return revision
      }, signal),
    putAll: (writes, signal) => through(() => store.putAll(writes, never), signal),
    remove: (prefix, signal) => through(() => store.remove(prefix, never), signal),
    [Symbol.asyncDispose]: async () => {},
  }
}

describe('lease', () => {
  it('is never held by two, whatever the network does', async () => {
    let acquired = 0
    await fc.assert(
      fc.asyncProperty(fc.array(worker, { minLength: 2, maxLength: 3 }), async (workers) => {
        const time = virtualTime()
        const store = memoryStore()
        const held = new Map<number, Lease>()
        const epochs: number[] = []
        const shared: string[] = []
        let over = 0
        // Some lines are so bad that nobody ever gets it.
        const end = new AbortController()
        const live = workers.map(async ({ fates, outages, work, speed }, i) => {
          const clock: Clock = () => time.clock() * speed
          const sleep: Sleep = (ms, signal) => time.sleep(ms / speed, signal)
          const onPut = (value: unknown): void => {
            // The moment somebody has it in the store, every other signal must have aborted.
            const { free, owner } = value as { readonly free: boolean; readonly owner: string }
            if (free) return
            for (const [other, lease] of held) {
              if (String(other) !== owner && !lease.signal.aborted)
                shared.push(`${owner} took what ${other} still holds`)
            }
          }
          const mine = leases(badLine(store, { fates, outages }, time, onPut), String(i), { clock, sleep })
          for (const ms of work) {
            if (end.signal.aborted) break
            const lease = await mine.acquire('capture', ttl, end.signal).catch(() => undefined)
            if (!lease) {
              await sleep(1000, never)
              continue
            }
            acquired++
            for (const [other, old] of held) {
              assert.ok(old.signal.aborted, `worker ${i} got it while ${other} held it`)
            }
            held.set(i, lease)
            epochs.push(lease.epoch)
            await sleep(ms, lease.signal).catch(() => {})
            await lease[Symbol.asyncDispose]()
            held.delete(i)
          }
          over++
        })
        const all = Promise.all(live)
        all.catch(() => (over = workers.length))
        while (over < workers.length && (await time.step())) if (time.clock() > 60_000) end.abort()
        await all
        assert.deepEqual(shared, [])
        assert.deepEqual(
          epochs,
          [...new Set(epochs)].sort((a, b) => a - b),
          'epochs rise',
        )
      }),
      { numRuns: 100, endOnFailure: true },
    )
    assert.ok(acquired > 40, `only ${acquired} were acquired: the test shows nothing`)
  })

  it('outlives a line that loses every second answer', async () => {
    const time = virtualTime()
    const fates: Fate[] = [
      { before: 0, after: 0, end: 'answer' },
      { before: 0, after: 0, end: 'lost-after' },
    ]
    const store = memoryStore()
    const mine = leases(
      badLine(store, { fates, outages: [] }, time, () => {}),
      'one',
      time,
    )
    const acquiring = mine.acquire('capture', ttl, never)
    let lease: Lease | undefined
    void acquiring.then((got) => (lease = got))
    while (lease === undefined && (await time.step()));
    const began = time.clock()
    while (time.clock() < began + 20 * ttl && (await time.step())) assert.equal(lease?.signal.aborted, false)
    const given = lease?.[Symbol.asyncDispose]()
    while (await time.step());
    await given
  })

  it('aborts within its time when the store no longer answers', async () => {
    const time = virtualTime()
    const store = memoryStore()
    let cut = false
    const line: StateStore = {
      ...store,
      get: (key, signal) => (cut ? time.sleep(1e9, signal).then(() => undefined) : store.get(key, signal)),
      put: (key, value, expected, signal) =>
        cut ? time.sleep(1e9, signal).then(() => undefined) : store.put(key, value, expected, signal),
    }
    const lease = await leases(line, 'one', time).acquire('capture', ttl, never)
    while (time.clock() < 10 * ttl && (await time.step()));
    assert.equal(lease.signal.aborted, false)
    cut = true
    const since = time.clock()
    while (!lease.signal.aborted && (await time.step()));
    assert.ok(time.clock() - since <= ttl, `${time.clock() - since} ms`)
    await lease[Symbol.asyncDispose]()
  })

  it('does not trust a lease that stood still only since it was last asked about', async () => {
    const time = virtualTime()
    const store = memoryStore()
    const one = await leases(store, 'one', time).acquire('capture', ttl, never)
    const other = leases(store, 'other', time)
    // A holder that never renews again, without being asked to stop.
    assert.equal(await other.tryAcquire('capture', ttl, never), undefined)
    while (time.clock() < ttl / 2 && (await time.step()));
    assert.equal(await other.tryAcquire('capture', ttl, never), undefined)
    await one[Symbol.asyncDispose]()
    const next = await other.tryAcquire('capture', ttl, never)
    assert.ok(next)
    assert.ok(next.epoch > one.epoch)
    await next[Symbol.asyncDispose]()
  })
})
