import type { Clock, Sleep } from '../../../src/coordinate/lease.ts'

/** Time that moves only when told. Everything that sleeps is woken in order of its hour; between two of them all that can go on goes on. */
type VirtualTime = {
  readonly clock: Clock
  readonly sleep: Sleep
  /** Wakes the next sleeper; false when nobody sleeps. */
  readonly step: () => Promise<boolean>
}

export function virtualTime(): VirtualTime {
  let now = 0
  type Sleeper = { readonly at: number; readonly wake: () => void }
  const sleepers = new Set<Sleeper>()
  const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
  return {
    clock: () => now,
    sleep: (ms, signal) =>
      new Promise((resolve, reject) => {
        const leave = (): void => {
          sleepers.delete(sleeper)
          signal.removeEventListener('abort', abort)
        }
        const abort = (): void => {
          leave()
          reject(signal.reason as Error)
        }
        const sleeper: Sleeper = {
          at: now + ms,
          wake: () => {
            leave()
            resolve()
          },
        }
        if (signal.aborted) return reject(signal.reason as Error)
        sleepers.add(sleeper)
        signal.addEventListener('abort', abort)
      }),
    step: async () => {
      await settle()
      let first: Sleeper | undefined
      for (const sleeper of sleepers) if (!first || sleeper.at < first.at) first = sleeper
      if (!first) return false
      now = Math.max(now, first.at)
      first.wake()
      await settle()
      return true
    },
  }
}
