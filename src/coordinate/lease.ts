import { randomUUID } from 'node:crypto'
import { setTimeout } from 'node:timers/promises'
import { Failure } from '../errors.ts'
import type { Epoch } from '../model.ts'
import type { StateStore } from './state-store.ts'

/** The right to do one thing. All work under it takes `signal`, which aborts before anyone else can hold it; `epoch` goes into every write. */
export interface Lease extends AsyncDisposable {
  readonly name: string
  readonly epoch: Epoch
  readonly signal: AbortSignal
}
/** A foreign lease is free once its revision stood still for `ttl` on our own monotonic clock: clocks are never compared. */
export interface Leases {
  acquire(name: string, ttl: number, signal: AbortSignal): Promise<Lease>
  tryAcquire(name: string, ttl: number, signal: AbortSignal): Promise<Lease | undefined>
}

/** Who has the lease, for people; undefined when it is free. */
export async function holder(store: StateStore, name: string, signal: AbortSignal): Promise<string | undefined> {
  const held = (await store.get(`lease/${name}`, signal))?.value as Held | undefined
  return held === undefined || held.free ? undefined : held.owner
}

/** Whether the lease's holder lives: it renews within a third of its time, so the answer takes as long where nobody does. */
export async function isRenewed(store: StateStore, name: string, signal: AbortSignal): Promise<boolean> {
  const first = await store.get(`lease/${name}`, signal)
  const { ttl, free } = (first?.value as Held | undefined) ?? { ttl: 0, free: true }
  if (free) return false
  const deadline = monotonic() + ttl / 2
  while (monotonic() < deadline) {
    await wait(100, signal)
    const now = await store.get(`lease/${name}`, signal)
    if (now?.revision !== first?.revision) return (now?.value as Held | undefined)?.free === false
  }
  return false
}

/** Milliseconds that never go back. */
export type Clock = () => number
/** Resolves after `ms`; rejects when `signal` aborts. */
export type Sleep = (ms: number, signal: AbortSignal) => Promise<void>

type LeaseOptions = {
  readonly clock?: Clock
  readonly sleep?: Sleep
  /** True only if the owner of this name is certainly gone: its lease need not run out. */
  readonly hasEnded?: (owner: string) => boolean
}

/** A holder trusts its lease for this part of its time only: timers are late, and clocks do not run alike. */
const trust = 0.9

/** What stands in the store under `lease/<name>`. `token` is new for each acquisition: it settles lost answers. */
type Held = { readonly owner: string; readonly token: string; readonly ttl: number; readonly free: boolean }

/** Leases over one store. `owner` is for people. Revisions of a key rise for ever, so that of the acquiring write is the epoch.
 *  `acquire` waits until the lease is free, polling; both reject with what the store rejects with. A lease's signal also aborts with the `signal` it
 *  was acquired under, and when it is disposed of, which gives it back. */
export function leases(
  store: StateStore,
  owner: string,
  { clock = monotonic, sleep = wait, hasEnded = () => false }: LeaseOptions = {},
): Leases {
  /** Where foreign leases stood when first seen so; what was seen once must stand still for its whole time from then on. */
  const seen = new Map<string, { readonly revision: number; readonly since: number }>()
  /** Tokens of our own that were lost, and disposed of since. */
  const abandoned = new Set<string>()

  /** The lease, or how long to wait before it could be free. */
  const attempt = async (name: string, ttl: number, signal: AbortSignal): Promise<Lease | number> => {
    const key = `lease/${name}`
    const found = await store.get(key, signal)
    const current = found?.value as Held | undefined
    if (found && current && !current.free) {
      // Counted from after the answer: the holder counts from before its write, hence is always first to give up.
      let sight = seen.get(name)
      if (sight?.revision !== found.revision) seen.set(name, (sight = { revision: found.revision, since: clock() }))
      const left = sight.since + Math.max(current.ttl, ttl) - clock()
      // Nothing runs under those any more.
      if (left > 0 && !abandoned.has(current.token) && !hasEnded(current.owner)) return left
    }
    const mine: Held = { owner, token: randomUUID(), ttl, free: false }
    const began = clock()
    const revision = await settled(store, key, mine, found?.revision ?? 0, signal)
    // An answer that came too late tells nothing: somebody else may hold it by now.
    if (revision === undefined || clock() >= began + ttl * trust) return 0
    seen.delete(name)
    const held = { name, key, mine, revision, validUntil: began + ttl * trust }
    return hold(store, held, clock, sleep, signal, () => abandoned.add(mine.token))
  }

  return {
    tryAcquire: async (name, ttl, signal) => {
      const result = await attempt(name, ttl, signal)
      return typeof result === 'number' ? undefined : result
    },
    acquire: async (name, ttl, signal) => {
      for (;;) {
        const result = await attempt(name, ttl, signal)
        if (typeof result !== 'number') return result
        await sleep(Math.max(5, Math.min(result, ttl / 20)), signal)
      }
    },
  }
}

/** A put whose lost answer is settled by looking. */
async function settled(
  store: StateStore,
  key: string,
  value: Held,
  expected: number,
  signal: AbortSignal,
): Promise<number | undefined> {
  try {
    return await store.put(key, value, expected, signal)
  } catch (error) {
    const now = await store.get(key, signal).catch(() => undefined)
    if ((now?.value as Held | undefined)?.token === value.token) return now?.revision
    throw error
  }
}

type Holding = {
  readonly name: string
  readonly key: string
  readonly mine: Held
  revision: number
  /** On our clock, counted from the start of the last successful write. */
  validUntil: number
  /** Start of the first write since then whose answer was lost. */
  unsettled?: number | undefined
}

function hold(
  store: StateStore,
  holding: Holding,
  clock: Clock,
  sleep: Sleep,
  parent: AbortSignal,
  onAbandoned: () => void,
): Lease {
  const { name, key, mine } = holding
  const epoch = holding.revision
  const ended = new AbortController()
  const signal = AbortSignal.any([ended.signal, parent])
  const lose = (observed: string): void =>
    ended.abort(new Failure('LEASE_LOST', { object: name, observed, effect: 'Work under it has stopped' }))

  const watch = async (): Promise<void> => {
    for (let left = holding.validUntil - clock(); left > 0; left = holding.validUntil - clock())
      await sleep(left, ended.signal)
    lose(`not renewed for ${mine.ttl} ms`)
  }
  /** Settles what became of our writes; true while the lease is ours. A foreign hand in the store ends it. */
  const look = async (until: AbortSignal): Promise<boolean> => {
    const now = await store.get(key, until)
    const found = now?.value as Held | undefined
    if (now === undefined || found?.token !== mine.token || found.free) {
      lose(`now held by ${found?.owner ?? 'nobody'}`)
      return false
    }
    if (now.revision === holding.revision) return true
    // One of the writes without an answer landed, not before the first of them began; the others no longer can.
    holding.revision = now.revision
    if (holding.unsettled !== undefined)
      holding.validUntil = Math.max(holding.validUntil, holding.unsettled + mine.ttl * trust)
    holding.unsettled = undefined
    return true
  }
  /** True once renewed, false if it is to be tried again soon. */
  const renew = async (): Promise<boolean> => {
    const limit = new AbortController()
    const until = AbortSignal.any([ended.signal, limit.signal])
    const timer = sleep(mine.ttl / 3, until).then(
      () => limit.abort(),
      () => {},
    )
    try {
      if (holding.unsettled !== undefined && !(await look(until))) return false
      const began = clock()
      holding.unsettled ??= began
      const revision = await store.put(key, mine, holding.revision, until)
      if (revision === undefined) {
        await look(until)
        return false
      }
      holding.revision = revision
      holding.validUntil = began + mine.ttl * trust
      holding.unsettled = undefined
      return true
    } catch {
      return false
    } finally {
      limit.abort()
      await timer
    }
  }
  const renewing = async (): Promise<void> => {
    for (let pause = mine.ttl / 3; !ended.signal.aborted; pause = (await renew()) ? mine.ttl / 3 : mine.ttl / 20)
      await sleep(pause, ended.signal)
  }
  const watched = watch().catch(() => {})
  const renewed = renewing().catch(() => {})

  const release = async (): Promise<void> => {
    const limit = new AbortController()
    const stop = limit.signal
    const timer = sleep(Math.max(0, holding.validUntil - clock()), limit.signal).then(
      () => limit.abort(),
      () => {},
    )
    try {
      for (let tries = 0; tries < 3; tries++) {
        if ((await store.put(key, { ...mine, free: true }, holding.revision, stop)) !== undefined) return
        // A renewal whose answer we did not wait for may have landed.
        const now = await store.get(key, stop)
        if (now === undefined || (now.value as Held).token !== mine.token) return
        holding.revision = now.revision
      }
    } catch {
      // It runs out by itself.
    } finally {
      limit.abort()
      await timer
    }
  }
  let disposed: Promise<void> | undefined
  return {
    name,
    epoch,
    signal,
    [Symbol.asyncDispose]: () => {
      disposed ??= (async () => {
        const lost = ended.signal.aborted || holding.validUntil <= clock()
        ended.abort(new Failure('LEASE_LOST', { object: name, observed: 'given back' }))
        await Promise.all([watched, renewed])
        if (lost) onAbandoned()
        else await release()
      })()
      return disposed
    },
  }
}

const monotonic: Clock = () => performance.now()
const wait: Sleep = async (ms, signal) => {
  await setTimeout(ms, undefined, { signal })
}
