import type { Checkpoint, Chunk, Offset, Position, TableCopy, TableSchema } from '../model.ts'
import { partitionName, tableName } from '../model.ts'
import type { Failure } from '../errors.ts'
import { partitionsOf, type Registered } from '../registry.ts'
import { missingChunks } from '../snapshot/plan.ts'
import { tableState } from '../snapshot/table-state.ts'
import type { Phase, Status, TableStatus, Verdict } from '../status.ts'
import type { WatermarkTrail } from './lag.ts'

export type Copies = readonly (TableCopy & { readonly done: readonly Chunk['id'][] })[]
export type Observed = {
  readonly health?: { readonly position: Position; readonly retainedBytes?: number; readonly safeBytes?: number }
  readonly checkpoints?: readonly Checkpoint[]
  readonly copies?: Copies
  /** True ends of the data partitions. */
  readonly ends?: readonly Offset[]
}
/** What is known of one pipeline, gathered from its tasks; `status` is a picture of it at one moment. */
export interface Board {
  phase: Phase
  plan(tables: readonly Registered[]): void
  copied(table: TableSchema, bytes: number, rows: number): void
  read(changes: number): void
  applied(changes: number): void
  observe(observed: Observed): void
  /** Replaced by the next, cleared by `undefined`. */
  failure: { readonly failure: Failure; readonly retrying: boolean } | undefined
  status(): Status
}

/** Seconds of lag that still count as keeping up: a heartbeat a second, and as much again for its way. */
const keepingUp = 5
const windowMs = 5000

type Tally = { rows: bigint; bytes: bigint; readonly estimated: number; readonly table: Registered }

export function statusBoard(
  pipeline: string,
  slot: string | null,
  trail: WatermarkTrail,
  now: () => number = Date.now,
): Board {
  const tallies = new Map<string, Tally>()
  let seen: Observed = {}
  let read = 0n
  let applied = 0n
  const samples: { readonly at: number; readonly read: bigint; readonly applied: bigint }[] = []
  const rates = (): { read: number; applied: number } => {
    const at = now()
    samples.push({ at, read, applied })
    while (samples.length > 2 && at - (samples[0]?.at ?? at) > windowMs) samples.shift()
    const oldest = samples[0]
    const seconds = oldest === undefined ? 0 : (at - oldest.at) / 1000
    if (oldest === undefined || seconds <= 0) return { read: 0, applied: 0 }
    return { read: Number(read - oldest.read) / seconds, applied: Number(applied - oldest.applied) / seconds }
  }
  const tableStatus = (tally: Tally, stopped: boolean): TableStatus => {
    const { schema, route, plan } = tally.table
    const name = tableName(schema.table)
    const copy = seen.copies?.find((other) => tableName(other.table) === name)
    const missing = missingChunks(plan, new Set(copy?.done), copy?.snapshot ?? ('' as Position), false)
    const done = plan.ranges.length - missing.length
    const state = tableState({
      stopped,
      live: copy?.live === true,
      snapshot: copy !== undefined && copy.snapshot !== '',
      // A first copy has nothing to catch up with; later ones are told by the watermarks.
      stands:
        copy === undefined ||
        trail.stands(
          partitionsOf(route).map((at) => ({ ...at, offset: 0 })),
          seen.checkpoints ?? [],
          copy.snapshot,
        ) ||
        tally.rows > 0n,
      missing: missing.length,
    })
    return {
      name,
      state,
      chunksDone: done,
      chunks: plan.ranges.length,
      rows: tally.rows,
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
        const before = tallies.get(name)
        tallies.set(name, { rows: before?.rows ?? 0n, bytes: before?.bytes ?? 0n, estimated, table })
      }
    },
    copied(table, bytes, rows) {
      const tally = tallies.get(tableName(table.table))
      if (tally === undefined) return
      tally.bytes += BigInt(bytes)
      tally.rows += BigInt(rows)
    },
    read(changes) {
      read += BigInt(changes)
    },
    applied(changes) {
      applied += BigInt(changes)
    },
    observe(observed) {
      seen = { ...seen, ...observed }
    },
    status() {
      const proof = seen.checkpoints === undefined ? undefined : trail.applied(seen.checkpoints)
      const stopped = this.failure !== undefined && !this.failure.retrying
      const tables = [...tallies.values()].map((tally) => tableStatus(tally, stopped))
      const live = tables.length > 0 && tables.every(({ state }) => state === 'live')
      const proved = proof !== undefined && live
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
        verdict: verdict(stopped, seconds, pace.read),
        source: {
          position: seen.health?.position ?? null,
          slot,
          retainedBytes: bytesOf(seen.health?.retainedBytes),
          safeWalBytes: bytesOf(seen.health?.safeBytes),
        },
        target: { position: proof?.position ?? null, watermarkAt: proof?.committedAt ?? null },
        lag: { seconds, proved, bytes: null, records: records === undefined ? null : BigInt(records) },
        rates: pace,
        tables,
        error: this.failure
          ? { code: this.failure.failure.code, facts: this.failure.failure.facts, retrying: this.failure.retrying }
          : null,
        totals: { read, applied },
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

function bytesOf(count: number | undefined): bigint | null {
  return count === undefined ? null : BigInt(Math.max(0, Math.round(count)))
}
