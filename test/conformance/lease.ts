import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { describe, it } from 'node:test'
import { setTimeout } from 'node:timers/promises'
import { Failure } from '../../src/errors.ts'
import { leases } from '../../src/coordinate/lease.ts'
import type { StateStore } from '../../src/coordinate/state-store.ts'

/** What leases must do over every state store, in real time. `open` gives one more handle on the same store. */
export function leaseConformance(name: string, open: () => Promise<StateStore>, skip: string | false = false): void {
  describe(`lease: ${name}`, { skip }, () => {
    const never = new AbortController().signal
    const fresh = (): string => `conformance-${randomUUID()}`
    /** Cut off from here on: every call waits until its signal aborts, as behind a dead network. */
    const cuttable = (store: StateStore): StateStore & { cut: boolean } => {
      const guard = async (signal: AbortSignal): Promise<void> => {
        if (cut.cut) await setTimeout(60_000, undefined, { signal, ref: false })
      }
      const cut: StateStore & { cut: boolean } = {
        cut: false,
        get: async (key, signal) => (await guard(signal), store.get(key, signal)),
        list: async (prefix, signal) => (await guard(signal), store.list(prefix, signal)),
        put: async (key, value, expected, signal) => (await guard(signal), store.put(key, value, expected, signal)),
        putAll: async (writes, signal) => (await guard(signal), store.putAll(writes, signal)),
        remove: async (prefix, signal) => (await guard(signal), store.remove(prefix, signal)),
        [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
      }
      return cut
    }

    it('is held by one, and free at once when given back', async () => {
      await using store = await open()
      await using second = await open()
      const [one, other] = [leases(store, 'one'), leases(second, 'other')]
      const lease = fresh()
      const held = await one.acquire(lease, 5_000, never)
      assert.equal(held.signal.aborted, false)
      assert.equal(await other.tryAcquire(lease, 5_000, never), undefined)
      assert.equal(await one.tryAcquire(lease, 5_000, never), undefined, 'not even by the same owner')
      await held[Symbol.asyncDispose]()
      assert.equal(held.signal.aborted, true)
      await using next = await other.tryAcquire(lease, 5_000, never)
      assert.ok(next, 'free at once')
      assert.ok(next.epoch > held.epoch, 'epochs rise')
    })

    it('stays held for many times its time to live', async () => {
      await using store = await open()
      await using second = await open()
      const [one, other] = [leases(store, 'one'), leases(second, 'other')]
      const lease = fresh()
      await using held = await one.acquire(lease, 800, never)
      const until = performance.now() + 3_200
      while (performance.now() < until) {
        assert.equal(await other.tryAcquire(lease, 800, never), undefined)
        assert.equal(held.signal.aborted, false)
        await setTimeout(40)
      }
    })

    it('is lost by a holder that cannot reach the store before another one gets it', async () => {
      await using store = await open()
      await using second = await open()
      const near = cuttable(store)
      const [one, other] = [leases(near, 'one'), leases(second, 'other')]
      const lease = fresh()
      await using held = await one.acquire(lease, 1_500, never)
      const waiting = other.acquire(lease, 1_500, never)
      near.cut = true
      await using next = await waiting
      assert.equal(held.signal.aborted, true, 'its signal aborted first')
      assert.ok(held.signal.reason instanceof Failure)
      assert.equal(held.signal.reason.code, 'LEASE_LOST')
      assert.ok(next.epoch > held.epoch)
      near.cut = false
      await held[Symbol.asyncDispose]()
      assert.equal(await one.tryAcquire(lease, 1_500, never), undefined, 'a lost lease gives nothing back')
      assert.equal(next.signal.aborted, false)
    })

    it('goes to one of many who want it, to each in turn', async () => {
      const handles = await Promise.all([open(), open(), open(), open()])
      const lease = fresh()
      const epochs: number[] = []
      let holders = 0
      try {
        await Promise.all(
          handles.map(async (store, i) => {
            const mine = leases(store, `worker ${i}`)
            for (let turn = 0; turn < 3; turn++) {
              await using held = await mine.acquire(lease, 1_000, never)
              assert.equal(++holders, 1)
              epochs.push(held.epoch)
              await setTimeout(5)
              holders--
            }
          }),
        )
      } finally {
        for (const handle of handles) await handle[Symbol.asyncDispose]()
      }
      assert.equal(epochs.length, 12)
      assert.deepEqual(
        epochs,
        [...epochs].sort((a, b) => a - b),
      )
      assert.equal(new Set(epochs).size, 12)
    })

    it('stops waiting, and its work, when the signal given aborts', async () => {
      await using store = await open()
      const mine = leases(store, 'one')
      const lease = fresh()
      const stop = new AbortController()
      await using held = await mine.acquire(lease, 1_000, stop.signal)
      const waiting = mine.acquire(lease, 1_000, stop.signal)
      const aborted = once(held.signal, 'abort')
      stop.abort()
      await assert.rejects(waiting)
      await aborted
    })
  })
}
