import { setTimeout as sleep } from 'node:timers/promises'
import { asFailure, type Failure } from './errors.ts'
import type { Logger } from './logger.ts'

type Pacing = { readonly first: number; readonly most: number; readonly random: () => number }
const pacing: Pacing = { first: 100, most: 10_000, random: Math.random }

/** The one place that decides to stop, retry or wait. Runs `work` until it resolves. A failure whose policy is `retry` is tried again after a
 *  backoff with full jitter, doubled up to `most` ms; a run that called `progressed`, or took more than a minute before the failure, starts the
 *  backoff anew. Everything else, and anything after `signal` aborted, is thrown. Logged at `info` the first time, at `warn` from the third on that
 *  comes within a minute, progress or not. `onRetry`: for the status. */
export async function runLoop<T>(
  name: string,
  log: Logger,
  signal: AbortSignal,
  work: (signal: AbortSignal, progressed: () => void) => Promise<T>,
  { onRetry, ...rest }: Partial<Pacing> & { readonly onRetry?: (failure: Failure) => void } = {},
): Promise<T> {
  const { first, most, random } = { ...pacing, ...rest }
  for (let attempt = 0, repeated = 0; ; attempt++, repeated++) {
    const began = performance.now()
    try {
      return await work(signal, () => (attempt = 0))
    } catch (error) {
      if (signal.aborted) throw signal.reason
      const failure = asFailure(error)
      if (failure.policy !== 'retry') throw failure
      if (performance.now() - began > 60_000) attempt = repeated = 0
      const wait = Math.min(most, first * 2 ** attempt) * (0.5 + random() / 2)
      const facts = { task: name, code: failure.code, ...failure.facts, cause: undefined, again: Math.round(wait) }
      if (repeated < 2) log.info(facts, failure.message)
      else log.warn(facts, failure.message)
      onRetry?.(failure)
      await sleep(wait, undefined, { signal })
    }
  }
}
