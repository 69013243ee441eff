import { asFailure, type Failure } from './errors.ts'
import type { Logger } from './logger.ts'
import { runLoop } from './run-loop.ts'

/** Tasks that belong together: the first failure that no retry can help ends them all, and is what `ended` rejects with. */
interface TaskGroup {
  /** Finish what is in hand: asked for from outside, by a failure, or by `end`. */
  readonly halt: AbortSignal
  /** Runs `work` in the run loop; it returns when `halt` aborts, and gives up at once when its signal does. After `progressed` a failure is tried again
   *  as soon as a first one. */
  start(name: string, work: Work): void
  end(): void
  /** Once every task has ended. */
  ended(): Promise<void>
}

type Work = (signal: AbortSignal, progressed: () => void) => Promise<void>

/** Milliseconds that tasks get to finish what is in hand. */
const patience = 20_000

export function taskGroup(
  log: Logger,
  {
    stop,
    signal,
    onTrouble,
  }: {
    readonly stop: AbortSignal
    readonly signal: AbortSignal
    /** A failure that is tried again; undefined: its task has gone on. */
    readonly onTrouble: (failure: Failure | undefined) => void
  },
): TaskGroup {
  const ending = new AbortController()
  const late = new AbortController()
  const halt = AbortSignal.any([stop, signal, ending.signal])
  const hard = AbortSignal.any([signal, late.signal])
  const tasks: Promise<void>[] = []
  const troubled = new Set<string>()
  let failure: Failure | undefined
  const run = async (name: string, work: Work): Promise<void> => {
    const attempt = async (_: AbortSignal, progressed: () => void): Promise<void> => {
      const calmed = (): void => {
        if (troubled.delete(name) && troubled.size === 0) onTrouble(undefined)
      }
      const calm = setTimeout(calmed, 2000)
      try {
        await work(hard, progressed)
        calmed()
      } finally {
        clearTimeout(calm)
      }
    }
    try {
      await runLoop(name, log, halt, attempt, {
        onRetry: (trouble) => {
          troubled.add(name)
          onTrouble(trouble)
        },
      })
    } catch (error) {
      if (halt.aborted) return log.debug({ task: name, error: String(error) }, 'ended while stopping')
      failure ??= asFailure(error)
      log.error({ task: name, code: failure.code }, failure.message)
      ending.abort(failure)
    }
  }
  return {
    halt,
    start: (name, work) => void tasks.push(run(name, work)),
    end: () => ending.abort(),
    async ended() {
      const hurry = (): unknown => setTimeout(() => late.abort(), patience).unref()
      if (halt.aborted) hurry()
      else halt.addEventListener('abort', hurry, { once: true })
      for (let done = 0; done < tasks.length;) {
        done = tasks.length
        await Promise.all(tasks)
      }
      signal.throwIfAborted()
      if (failure !== undefined) throw failure
    },
  }
}
