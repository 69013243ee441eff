import { setTimeout as sleep } from 'node:timers/promises'
import type { Sink, Snapshot, Source } from '../connector.ts'
import type { Lease, Leases } from '../coordinate/lease.ts'
import { asFailure, Failure } from '../errors.ts'
import { failpoint } from '../failpoint.ts'
import { origin, tableName, type Chunk, type Position, type TableSchema, type TopicPartition } from '../model.ts'
import type { Rows } from '../rows.ts'
import { copyChunk } from './copy-chunk.ts'
import { inOrder, missingChunks, rowsLoaded, type TablePlan } from './plan.ts'

type CopiedTable = {
  readonly schema: TableSchema
  readonly partitions: readonly TopicPartition[]
  readonly plan: TablePlan
}
export type CopyParts = {
  readonly source: Source
  readonly sink: Sink
  readonly leases: Leases
  /** Read anew for each round: a table that was rewritten has another plan. */
  readonly tables: () => Promise<readonly CopiedTable[]>
  /** The table was rewritten or truncated under its snapshot: its next plan starts over. */
  readonly startOver: (table: TableSchema) => Promise<void>
  readonly parallel: number
  /** Milliseconds a chunk's lease lives without renewal. */
  readonly ttl: number
  /** Tables stay at the snapshot instead of going on with the changes: the target then is one exact state of the source. */
  readonly keepHeld: boolean
  /** Resolves once these partitions are applied up to `position`. */
  readonly stands: (partitions: readonly TopicPartition[], position: Position, signal: AbortSignal) => Promise<void>
  /** The last truncate of the table behind `position`, if there is one in the log. Asked when the table is not the one the snapshot saw. */
  readonly emptied: (table: TableSchema, position: Position, signal: AbortSignal) => Promise<Position | undefined>
  /** All chunks are in, nothing is live yet: what would have slowed the copy, and counters. */
  readonly complete: (signal: AbortSignal) => Promise<void>
  /** A hold was set, moved or lifted. */
  readonly moved: () => Promise<void>
  readonly seen: (table: TableSchema, bytes: number, rows: number) => void
}

export type Outcome = 'done' | 'again' | 'stopped'

/** How the leases of chunks are called. */
export const chunkLeases = 'chunk/'

/** One round of hold, replace, go on over every table that is not live: each under the same exact snapshot, so that the target as a whole is one
 *  state of the source when the last chunk is in, and foreign keys can be validated there. `first`: the snapshot that came with the slot; no
 *  change before it is in the log, and no row in the tables. `again`: tables were rewritten meanwhile, the rest is in. A failure of any kind ends
 *  the round too; finished chunks stay, and the next round takes a new snapshot (SPEC.md). After `stop` the chunks in hand are finished. */
export async function copyRound(
  parts: CopyParts,
  first: Snapshot | undefined,
  { epoch, signal }: Pick<Lease, 'epoch' | 'signal'>,
  stop: AbortSignal,
): Promise<Outcome> {
  const { source, sink, keepHeld } = parts
  const copies = new Map((await sink.copies(signal)).map((copy) => [tableName(copy.table), copy]))
  const open = (await parts.tables()).filter(({ schema }) => copies.get(tableName(schema.table))?.live !== true)
  if (open.length === 0) return 'done'
  const partitions = open.flatMap((table) => table.partitions)
  const hold = async (snapshot: Position): Promise<void> => {
    const held = open.map(({ schema, partitions }) => ({ table: schema.table, partitions, snapshot, live: false }))
    await sink.setCopies(held, epoch, signal)
    await parts.moved()
  }
  const release = async (at: Position, emptied: ReadonlyMap<string, Position>): Promise<void> => {
    const now = new Map((await sink.copies(signal)).map((copy) => [tableName(copy.table), copy]))
    const live = open.map(({ schema, partitions, plan }) => {
      const name = tableName(schema.table)
      const copy = now.get(name)
      const rows = copy === undefined ? 0 : rowsLoaded(plan, copy)
      return { table: schema.table, partitions, snapshot: emptied.get(name) ?? at, live: true, rows }
    })
    await sink.setCopies(live, epoch, signal)
    failpoint('copy.after-live')
    await parts.moved()
  }
  if (first === undefined) await hold(origin)
  failpoint('copy.between-hold-and-snapshot')
  await using snapshot = first ?? (await source.snapshot(signal))
  failpoint('copy.between-snapshot-and-hold')
  await hold(snapshot.position)
  if (first === undefined) await parts.stands(partitions, snapshot.position, signal)
  const queue = inOrder(
    open.map(({ schema, plan }) => {
      const done = new Set(copies.get(tableName(schema.table))?.done)
      const chunks = missingChunks(plan, done, snapshot.position, first === undefined)
      return { generation: plan.generation, chunks }
    }),
  )
  const round = { snapshot, tables: open, epoch, emptied: new Map<string, Position>() }
  const outcome = await copyChunks(parts, round, queue, signal, stop)
  if (outcome !== 'done') return outcome
  failpoint('copy.before-complete')
  await parts.complete(signal)
  failpoint('copy.before-live')
  // Rows that were left out of a table may be missed until its truncate.
  if (!keepHeld) await release(snapshot.position, round.emptied)
  return 'done'
}

/** `epoch`: of whoever drives the copy. Claims of chunks are named by it: those of a dead predecessor need not run out, its loads fail by the
 *  snapshot (H22). */
type Round = {
  readonly snapshot: Pick<Snapshot, 'id' | 'position'>
  readonly tables: readonly CopiedTable[]
  readonly epoch: number
  /** Tables that a truncate behind the snapshot empties: what their chunks hold counts for nothing, and they are done without rows. */
  readonly emptied: Map<string, Position>
}

/** `done`: every chunk, by us or by another worker. */
async function copyChunks(
  parts: CopyParts,
  round: Round,
  chunks: readonly Chunk[],
  signal: AbortSignal,
  stop: AbortSignal,
): Promise<Outcome> {
  const schemas = new Map(round.tables.map(({ schema }) => [tableName(schema.table), schema]))
  const queue = chunks.toReversed()
  /** Claimed by someone else when we came by. */
  const foreign: Chunk[] = []
  const rewritten = new Set<string>()
  const failed = new AbortController()
  const all = AbortSignal.any([signal, failed.signal])
  /** After `stop` the rest stays in the queue: what left it is copied, or the round fails. */
  const next = (): Chunk | undefined => (stop.aborted ? undefined : queue.pop())
  /** With connections of its own, until nothing is left or one of them is in the middle of a copy that was given up. */
  const someChunks = async (): Promise<void> => {
    await using reader = await parts.source.reader(round.snapshot.id, all)
    await using lane = await parts.sink.lane(all)
    for (let chunk = next(); chunk !== undefined; chunk = next()) {
      const name = tableName(chunk.table)
      const schema = schemas.get(name)
      if (rewritten.has(name)) continue
      if (schema === undefined) throw new Failure('BUG', { observed: `a chunk of ${name}, which is not copied` })
      await using lease = await parts.leases.tryAcquire(`${chunkLeases}${round.epoch}/${chunk.id}`, parts.ttl, all)
      if (lease === undefined) {
        foreign.push(chunk)
        continue
      }
      const claim = { epoch: lease.epoch, signal: AbortSignal.any([lease.signal, all]) }
      failpoint('copy.before-chunk')
      try {
        if (round.emptied.has(name)) {
          await lane.load(schema, chunk, { kind: 'rows', batches: noRows() }, claim.epoch, claim.signal)
          continue
        }
        const rows = await copyChunk(reader, lane, schema, chunk, claim, (bytes) => {
          failpoint('copy.in-chunk')
          parts.seen(schema, bytes, 0)
        })
        parts.seen(schema, 0, rows ?? 0)
      } catch (error) {
        if (asFailure(error).code !== 'TABLE_REWRITTEN') throw error
        const at = parts.keepHeld ? undefined : await parts.emptied(schema, round.snapshot.position, all)
        if (at !== undefined) {
          round.emptied.set(name, at)
          queue.push(chunk)
          return
        }
        // The others are copied to the end first: a table that is rewritten again and again must not keep them from it.
        if (!rewritten.has(name)) await parts.startOver(schema)
        rewritten.add(name)
        return
      }
      failpoint('copy.after-chunk')
    }
  }
  const worker = async (): Promise<void> => {
    while (queue.length > 0 && !stop.aborted) await someChunks()
  }
  const workers = Array.from({ length: Math.min(parts.parallel, chunks.length) }, async () => {
    try {
      await worker()
    } catch (error) {
      failed.abort(error)
      throw error
    }
  })
  const results = await Promise.allSettled(workers)
  signal.throwIfAborted()
  if (results.some(({ status }) => status === 'rejected')) throw failed.signal.reason
  if (stop.aborted && queue.length > 0) return 'stopped'
  if (rewritten.size > 0) return 'again'
  return foreign.length === 0 ? 'done' : await othersDone(parts, round, foreign, signal, stop)
}

async function* noRows(): AsyncIterable<Rows> {}

/** Waits for chunks that someone else had claimed; what a dead worker left behind is free once its lease has run out, and is copied here. */
async function othersDone(
  parts: CopyParts,
  round: Round,
  chunks: readonly Chunk[],
  signal: AbortSignal,
  stop: AbortSignal,
): Promise<Outcome> {
  await sleep(parts.ttl / 2, undefined, { signal: AbortSignal.any([signal, stop]) }).catch(() => {})
  signal.throwIfAborted()
  if (stop.aborted) return 'stopped'
  const done = new Set((await parts.sink.copies(signal)).flatMap((copy) => copy.done))
  const left = chunks.filter(({ id }) => !done.has(id))
  return left.length === 0 ? 'done' : await copyChunks(parts, round, left, signal, stop)
}
