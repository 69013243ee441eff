/** Wakes those who wait for appended records; a wake says nothing about which partition, so look again. */
export interface Arrivals {
  announce(): void
  /** Resolves at the next `announce` or after `ms`; rejects when `signal` aborts. */
  wait(ms: number, signal: AbortSignal): Promise<void>
}

export function arrivals(): Arrivals {
  let waiting: (() => void)[] = []
  return {
    announce() {
      const all = waiting
      waiting = []
      for (const wake of all) wake()
    },
    wait(ms, signal) {
      return new Promise((resolve, reject) => {
        if (signal.aborted) return reject(signal.reason)
        const done = (): void => {
          clearTimeout(timer)
          signal.removeEventListener('abort', aborted)
          waiting = waiting.filter((each) => each !== done)
          resolve()
        }
        const aborted = (): void => {
          reject(signal.reason)
          done()
        }
        const timer = setTimeout(done, ms)
        signal.addEventListener('abort', aborted, { once: true })
        waiting.push(done)
      })
    },
  }
}
