import type { Checkpoint, CopyState, Health, Offset, Position, TableSchema } from '../model.ts'
import { partitionName, tableName } from '../model.ts'
import type { Failure } from '../errors.ts'
import { partitionsOf, type Registered } from '../registry.ts'
import type { Applied } from '../run-record.ts'
import { missingChunks, rowsLoaded } from '../snapshot/plan.ts'
import { tableState } from '../snapshot/table-state.ts'
import type { Phase, Status, TableStatus, Verdict } from '../status.ts'
import type { WatermarkTrail } from './lag.ts'

type Observed = {
  readonly health?: Health
  readonly checkpoints?: readonly Checkpoint[]
  readonly copies?: readonly CopyState[]
  /** True ends of the data partitions. */
  readonly ends?: readonly Offset[]
  /** Changes applied since the start. */
  readonly applied?: number
}
/** What is known of one pipeline, gathered from its tasks; `status` is a picture of it at one moment. */
export interface Board {
  phase: Phase
  plan(tables: readonly Registered[]): void
  copied(table: TableSchema, bytes: number, rows: number): void
  observe(observed: Observed): void
  /** Replaced by the next, cleared by `undefined`. `at`: ms since 1970. */
  failure: { readonly failure: Failure; readonly retrying: boolean; readonly at: number } | undefined
  /** What an earlier run proved: shown until there is something newer, or checkpoints that are not as far. */
  recall(applied: Applied | undefined): void
  /** The newest watermark proved applied, for the next run. */
  readonly applied: Applied | undefined
  status(): Status
}

/** Seconds of lag that still count as keeping up: a heartbeat a second, and as much again for its way. */
const keepingUp = 5
const windowMs = 5000

type Sample = { readonly at: number; readonly read: number; readonly applied: number }
type Tally = { rows: bigint; bytes: bigint; readonly estimated: number; readonly table: Registered }

export function statusBoard(pipeline: string, trail: WatermarkTrail, now: () => number = Date.now): Board {
  const tallies = new Map<string, Tally>()
  let seen: Observed = {}
  /** Records in the log, and applied, by time: nothing is counted on the way of the data. */
  const samples: Sample[] = []
  let began: Sample | undefined
  let recalled: Applied | undefined
  let proved: Position | undefined
  const applied = (): Applied | undefined => {
    if (seen.checkpoints === undefined) return undefined
    const offsets = total(seen.checkpoints)
    const proof = trail.applied(seen.checkpoints)
    if (proof !== undefined && proof.position !== proved) recalled = { ...proof, offsets }
    else if (recalled !== undefined && recalled.offsets > offsets) recalled = undefined
    proved = proof?.position
    return recalled
  }
  const rates = (): { read: number; applied: number } | null => {
    if (began === undefined) return null
    const [oldest, newest] = [samples[0], samples.at(-1)]
    const seconds = oldest === undefined || newest === undefined ? 0 : (newest.at - oldest.at) / 1000
    if (oldest === undefined || newest === undefined || seconds <= 0) return { read: 0, applied: 0 }
    return { read: (newest.read - oldest.read) / seconds, applied: (newest.applied - oldest.applied) / seconds }
  }
  const tableStatus = (
    tally: Tally,
    copies: ReadonlyMap<string, CopyState>,
    { stopped, complete }: { readonly stopped: boolean; readonly complete: boolean },
  ): TableStatus => {
    const { schema, route, plan } = tally.table
    const name = tableName(schema.table)
    const copy = copies.get(name)
    const missing = missingChunks(plan, new Set(copy?.done), copy?.snapshot ?? ('' as Position), false)
    const live = copy?.live === true
    const done = plan.ranges.length - (live ? 0 : missing.length)
    const before = copy === undefined ? 0 : live ? (copy.rows ?? 0) : rowsLoaded(plan, copy)
    // Of this process: newer than what was read last.
    const rows = tally.rows > BigInt(before) ? tally.rows : BigInt(before)
    const state = tableState({
      stopped,
      live,
      snapshot: copy !== undefined && copy.snapshot !== '',
      // A first copy has nothing to catch up with; later ones are told by the watermarks.
      stands:
        live ||
        complete ||
        copy === undefined ||
        trail.stands(partitionsOf(route), seen.checkpoints ?? [], copy.snapshot) ||
        tally.rows > 0n,
      missing: missing.length,
    })
    return {
      name,
      state,
      chunksDone: done,
      chunks: plan.ranges.length,
      rows,
      bytes: tally.bytes,
      estimatedRows: BigInt(tally.estimated),
    }
  }
  return {
    phase: 'starting',
    failure: undefined,
    plan(tables) {
      for (const table of tables) {
        const estimated = table.plan.ranges.reduce((sum, range) => sum + range.estimatedRows, 0)
        const name = tableName(table.schema.table)
        const known = tallies.get(name)
        const before = known?.table.plan.generation === table.plan.generation ? known : undefined
        tallies.set(name, { rows: before?.rows ?? 0n, bytes: before?.bytes ?? 0n, estimated, table })
      }
    },
    copied(table, bytes, rows) {
      const tally = tallies.get(tableName(table.table))
      if (tally === undefined) return
      tally.bytes += BigInt(bytes)
      tally.rows += BigInt(rows)
    },
    recall(given) {
      recalled = given
    },
    get applied() {
      return seen.checkpoints === undefined ? recalled : applied()
    },
    observe(observed) {
      seen = { ...seen, ...observed }
      if (observed.ends === undefined || observed.checkpoints === undefined) return
      const at = now()
      const sample = { at, read: total(observed.ends), applied: total(observed.checkpoints) }
      began ??= sample
      samples.push(sample)
      while (samples.length > 2 && at - (samples[0]?.at ?? at) > windowMs) samples.shift()
    },
    status() {
      const proof = seen.checkpoints === undefined ? undefined : trail.applied(seen.checkpoints)
      const complete = this.phase === 'complete'
      const known = applied()
      const stopped = this.failure !== undefined && !this.failure.retrying
      const copies = new Map(seen.copies?.map((copy) => [tableName(copy.table), copy]))
      const tables = [...tallies.values()].map((tally) => tableStatus(tally, copies, { stopped, complete }))
      const live = tables.length > 0 && tables.every(({ state }) => state === 'live')
      const proved = proof !== undefined && proof.committedAt > 0 && live
      const seconds = proved ? Math.max(0, (now() - proof.committedAt) / 1000) : null
      const pace = rates()
      const offsets = new Map(seen.checkpoints?.map((checkpoint) => [partitionName(checkpoint), checkpoint.offset]))
      const records = seen.ends?.reduce(
        (sum, end) => sum + Math.max(0, end.offset - (offsets.get(partitionName(end)) ?? 0)),
        0,
      )
      return {
        pipeline,
        phase: this.phase,
        verdict: complete && !stopped ? 'ok' : verdict(stopped, seconds, pace?.read ?? 0),
        source: {
          position: seen.health?.position ?? null,
          slot: seen.health?.slot ?? null,
          retainedBytes: bytesOf(seen.health?.retainedBytes),
          safeWalBytes: bytesOf(seen.health?.safeBytes),
        },
        target: complete
          ? { position: seen.copies?.[0]?.snapshot ?? null, watermarkAt: null }
          : { position: known?.position ?? null, watermarkAt: known?.committedAt ?? null },
        lag: { seconds, proved, bytes: null, records: records === undefined ? null : BigInt(records) },
        rates: pace,
        tables,
        error: this.failure
          ? {
              code: this.failure.failure.code,
              facts: this.failure.failure.facts,
              retrying: this.failure.retrying,
              at: this.failure.at,
            }
          : null,
        ...(seen.applied === undefined ? {} : { totals: { applied: BigInt(seen.applied) } }),
      }
    },
  }
}

function verdict(stopped: boolean, seconds: number | null, read: number): Verdict {
  if (stopped) return 'failed'
  if (seconds === null) return 'unknown'
  if (seconds > keepingUp) return 'behind'
  return read > 0 ? 'ok' : 'idle'
}

function total(offsets: readonly Offset[]): number {
  return offsets.reduce((sum, { offset }) => sum + offset, 0)
}

function bytesOf(count: number | undefined): bigint | null {
  return count === undefined ? null : BigInt(Math.max(0, Math.round(count)))
}
