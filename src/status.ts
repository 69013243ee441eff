import { codes, type ErrorCode, type Facts } from './errors.ts'
import { withoutCauses } from './run-record.ts'
import type { TableState } from './snapshot/table-state.ts'
import type { Verification, Watched } from './verify/watched.ts'

/** `standby`: another process runs the pipeline; this one takes over when that ends. */
export type Phase = 'starting' | 'standby' | 'copying' | 'streaming' | 'stopping' | 'stopped' | 'complete' | 'failed'
/** Lag that is not proved by a watermark is `unknown`, never ok. `idle`: caught up, and nothing happens at the source. A complete `full` copy is ok. */
export type Verdict = 'ok' | 'behind' | 'idle' | 'unknown' | 'failed'
export type TableStatus = {
  readonly name: string
  readonly state: TableState
  readonly chunksDone: number
  /** 0: not planned yet. */
  readonly chunks: number
  /** Rows copied, and their bytes. */
  readonly rows: bigint
  readonly bytes: bigint
  /** Rows in all as the source estimates them. */
  readonly estimatedRows?: bigint
}
/** What is known about a pipeline at one moment: by its own process, which watches it live, or from outside, which reads the state store and the source. */
export type Status = {
  readonly pipeline: string
  readonly phase: Phase
  readonly verdict: Verdict
  readonly source: {
    readonly position: string | null
    readonly slot: string | null
    /** Kept by the source for us, and until it would give that up. */
    readonly retainedBytes: bigint | null
    readonly safeWalBytes: bigint | null
  }
  /** Newest watermark known to be applied, and when it was committed at the source (ms since 1970). Of a complete `full` copy: the state of the source
   *  that it is. */
  readonly target: { readonly position: string | null; readonly watermarkAt: number | null }
  /** `seconds`: null unless `proved`. `records`, `bytes`: in the log and not yet applied. */
  readonly lag: {
    readonly seconds: number | null
    readonly proved: boolean
    readonly bytes: bigint | null
    readonly records: bigint | null
  }
  /** Changes a second, over the last seconds; null where they were not watched. */
  readonly rates: { readonly read: number; readonly applied: number } | null
  readonly tables: readonly TableStatus[]
  /** What is tried again, or what ended the run. */
  readonly error: StatusError | null
  /** Changes applied since this process started; absent when read from outside. */
  readonly totals?: { readonly applied: bigint }
  /** Absent where nothing was ever verified, and in what a run tells of itself. */
  readonly verification?: Verification | undefined
}
/** `at`: ms since 1970. */
type StatusError = {
  readonly code: ErrorCode
  readonly facts: Facts
  readonly retrying: boolean
  readonly at: number
}

/** The document of `status --json`; 64-bit numbers are strings, as JSON's readers lose digits. */
export function statusJson(status: Status): unknown {
  const { pipeline, phase, verdict, source, target, lag, rates, tables, error, verification } = status
  const document = {
    v: 1,
    pipeline,
    phase,
    verdict,
    source,
    target,
    lag,
    rates,
    tables: tables.map(({ name, state, chunksDone, chunks, rows, bytes }) => ({
      name,
      state,
      chunksDone,
      chunks,
      rows,
      bytes,
    })),
    error: error && errorJson(error),
    verification: verificationJson(verification),
  }
  return JSON.parse(JSON.stringify(document, (_, value: unknown) => (typeof value === 'bigint' ? `${value}` : value)))
}

/** Times in ms since 1970. */
export function verificationJson(verification: Verification | undefined): unknown {
  if (verification === undefined) return null
  const { standing, last, continuous } = verification
  return {
    ...standing,
    last: last ?? null,
    continuous: continuous === undefined ? null : continuousJson(continuous),
  }
}

function continuousJson({ since, at, walks, walk, changes, open, trouble }: Watched): unknown {
  const { why, stretch, looked, passedOver } = changes
  return {
    since,
    at,
    walks,
    walk: walk ?? null,
    changes: { followed: why === undefined, why: why ?? null, upTo: stretch?.upTo ?? null, looked, passedOver },
    rows: open.rows,
    more: open.more.ofWalk + open.more.since,
    trouble: trouble ?? null,
  }
}

function errorJson({ code, facts, retrying, at }: StatusError): unknown {
  // Each of a list has its own next step.
  const next = facts.next ?? (facts.all === undefined ? codes[code].next : undefined)
  return { code, ...withoutCauses(facts), next, retrying, at }
}
