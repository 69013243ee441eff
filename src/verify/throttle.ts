import { setTimeout as sleep } from 'node:timers/promises'

export type Limits = {
  /** Rows of the source a second, over all readers. */
  readonly rate?: number | undefined
  /** Nothing is read while more sessions of others than this are at work at the source. */
  readonly maxLoad?: number | undefined
}
/** What bounds the load on a source, and counts the time it cost. */
export interface Throttle {
  /** Resolves when `rows` more may be read. */
  pass(rows: number, signal: AbortSignal): Promise<void>
  /** Waits for the load alone: `rows` are read at once, and whoever passes next waits for them too. */
  spend(rows: number, signal: AbortSignal): Promise<void>
  /** Of all who passed, in ms. */
  readonly waitedMs: number
}

const lookMs = 500

export function throttle(
  { rate, maxLoad }: Limits,
  load: ((signal: AbortSignal) => Promise<number>) | undefined,
): Throttle {
  let waited = 0
  /** When what was let pass so far has had its time. */
  let free = performance.now()
  const rest = async (signal: AbortSignal): Promise<void> => {
    if (maxLoad !== undefined && load !== undefined)
      while ((await load(signal)) > maxLoad) await sleep(lookMs, undefined, { signal })
  }
  return {
    get waitedMs() {
      return waited
    },
    async pass(rows, signal) {
      const began = performance.now()
      if (rate !== undefined) {
        const at = Math.max(free, began)
        free = at + (1000 * rows) / rate
        if (at > began) await sleep(at - began, undefined, { signal })
      }
      await rest(signal)
      waited += performance.now() - began
    },
    async spend(rows, signal) {
      const began = performance.now()
      if (rate !== undefined) free = Math.max(free, began) + (1000 * rows) / rate
      await rest(signal)
      waited += performance.now() - began
    },
  }
}
