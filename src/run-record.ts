import { isDeepStrictEqual } from 'node:util'
import type { StateStore } from './coordinate/state-store.ts'
import type { ErrorCode, Facts } from './errors.ts'
import type { Logger } from './logger.ts'
import type { Position } from './model.ts'

/** What a run leaves for whoever asks after it from outside. Nothing is resumed from it. */
export type RunRecord = {
  /** The newest watermark proved applied. It holds as long as checkpoints are at `offsets` or beyond: a target that was restored is behind. */
  readonly applied?: Applied | undefined
  /** What ended the run, or what it tries again; at: ms since 1970. */
  readonly error?:
    | { readonly code: ErrorCode; readonly facts: Facts; readonly retrying: boolean; readonly at: number }
    | undefined
}
/** `offsets`: the sum of all checkpoints' next offsets, which only rise. */
export type Applied = { readonly position: Position; readonly committedAt: number; readonly offsets: number }

export interface RunRecorder {
  /** Written if it is news. Whatever goes wrong is only logged: a report is no reason to stop. */
  keep(record: RunRecord, signal: AbortSignal): Promise<void>
}

const key = 'run'

export async function readRun(store: StateStore, signal: AbortSignal): Promise<RunRecord> {
  return ((await store.get(key, signal))?.value as RunRecord | undefined) ?? {}
}

/** For whoever holds the pipeline's lease: another writer in between ends the writing. */
export async function runRecorder(store: StateStore, log: Logger, signal: AbortSignal): Promise<RunRecorder> {
  const stored = await store.get(key, signal)
  let written = (stored?.value as RunRecord | undefined) ?? {}
  let revision: number | undefined = stored?.revision ?? 0
  return {
    async keep(record, signal) {
      const { applied, error } = record
      const next = JSON.parse(
        JSON.stringify({ applied, error: error && { ...error, facts: withoutCauses(error.facts) } }),
      ) as RunRecord
      if (revision === undefined || isDeepStrictEqual(next, written)) return
      try {
        revision = await store.put(key, next, revision, signal)
        written = next
      } catch (error) {
        log.debug({ error: String(error) }, 'the record of the run could not be written')
        const now = await store.get(key, signal).catch(() => null)
        if (now === null) return
        // What neither stood there nor was being written is a successor's.
        if (isDeepStrictEqual(now?.value ?? {}, next)) written = next
        revision = isDeepStrictEqual(now?.value ?? {}, written) ? (now?.revision ?? 0) : undefined
      }
    },
  }
}

/** A driver's error may hold values of rows. */
export function withoutCauses(given: Facts): Facts {
  const { cause: _, all, ...facts } = given
  return all === undefined ? facts : { ...facts, all: all.map(withoutCauses) }
}
