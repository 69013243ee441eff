import { watermarkTrail, type WatermarkTrail } from '../admin/lag.ts'
import type { SchemaReader } from '../avro/schema-ids.ts'
import type { ChangeLog } from '../change-log/change-log.ts'
import type { Sink, Source } from '../connector.ts'
import { asFailure } from '../errors.ts'
import {
  comparePositions,
  origin,
  partitionName,
  tableName,
  type Offset,
  type Position,
  type TableSchema,
} from '../model.ts'
import { partitionsOf, type Registered } from '../registry.ts'
import { changedRows, type ChangedRows, type Round } from './changed-rows.ts'
import type { TableCover, Stretch } from './coverage.ts'
import type { Watched } from './watched.ts'

/** More changes than this ahead are not read any more, but left to the walk. */
const mostBehind = 50_000
/** Tables of which it is known by themselves up to where changes were passed over. */
const mostGaps = 1_000

/** Where changes are followed to. A round is of changes that the target has applied. */
export interface Following {
  /** The tables as they are now; those that were not followed so far are from here on. */
  describe(tables: readonly Registered[], signal: AbortSignal): Promise<void>
  /** Up to `most` rows that changed and are applied by now; undefined: none yet. The same again until it was accepted. */
  next(most: number, signal: AbortSignal): Promise<Round | undefined>
  /** Its rows were looked at, but for those of these tables. */
  accept(round: Round, unseen: readonly string[], signal: AbortSignal): Promise<void>
  readonly trail: WatermarkTrail
  /** `covers`: what was read since a gap closes it. */
  state(covers: ReadonlyMap<string, TableCover>): Watched['changes']
}

const waitMs = 500

export function followChanges(
  log: ChangeLog,
  schemas: SchemaReader,
  { source, sink }: { readonly source: Pick<Source, 'health'>; readonly sink: Pick<Sink, 'checkpoints'> },
  kept: Watched['changes'] | undefined,
): Following {
  const trail = watermarkTrail()
  let rows: ChangedRows | undefined
  let topics = new Map<string, TableSchema>()
  let pending: Round | undefined
  let { looked, passedOver } = { looked: kept?.looked ?? 0, passedOver: kept?.passedOver ?? 0 }
  let after: Position | undefined = kept?.stretch?.after
  let upTo = kept?.stretch?.upTo ?? origin
  let gaps = new Map(Object.entries(kept?.stretch?.gaps ?? {}))

  /** No change of these tables that is in the log by now counts as looked at. */
  const gap = async (tables: Iterable<string>, signal: AbortSignal): Promise<void> => {
    const { position } = await source.health(signal)
    for (const table of tables) gaps.set(table, position)
    if (gaps.size <= mostGaps) return
    after = position
    gaps = new Map()
  }
  /** Leaves what is ahead to the walk. */
  const jump = async (signal: AbortSignal): Promise<void> => {
    if (rows === undefined) return
    const ends = await log.ends(rows.offsets, signal)
    const now = new Map(rows.offsets.map((at) => [partitionName(at), at.offset]))
    const skipped = ends.filter((end) => end.offset !== now.get(partitionName(end)))
    for (const end of skipped) passedOver += Math.max(0, end.offset - (now.get(partitionName(end)) ?? 0))
    await gap(namesOf(skipped), signal)
    rows.seek(ends)
    pending = undefined
  }
  const namesOf = (partitions: readonly Offset[]): ReadonlySet<string> =>
    new Set(partitions.flatMap(({ topic }) => nameOf(topics.get(topic)) ?? []))
  /** Those that can be gone on from: the others begin at the end, behind a gap. */
  const begin = async (tables: readonly Registered[], signal: AbortSignal): Promise<readonly Offset[]> => {
    const partitions = tables.flatMap(({ route }) => partitionsOf(route))
    const ends = await log.ends(partitions, signal)
    const lows = new Map((await log.lows(partitions, signal)).map((low) => [partitionName(low), low.offset]))
    const known = new Map(rows?.offsets.map((at) => [partitionName(at), at.offset]))
    const offsets = ends.map((end) => {
      const name = partitionName(end)
      const former = known.get(name) ?? kept?.offsets[end.topic]?.[end.partition]
      const holds = former !== undefined && former >= (lows.get(name) ?? 0) && former <= end.offset
      return { ...end, offset: holds ? former : end.offset, holds }
    })
    const fresh = offsets.filter(({ holds }) => !holds)
    if (after === undefined) after = (await source.health(signal)).position
    else await gap(namesOf(fresh), signal)
    return offsets.map(({ topic, partition, offset }) => ({ topic, partition, offset }))
  }

  return {
    trail,
    async describe(tables, signal) {
      const before = topics
      topics = new Map(tables.map(({ schema, route }) => [route.topic, schema]))
      const offsets = await begin(tables, signal)
      if (before.size !== topics.size || topics.keys().some((topic) => !before.has(topic))) trail.restart(offsets)
      rows = changedRows(log, schemas, topics, offsets)
      pending = undefined
      const names = new Set(tables.map(({ schema }) => tableName(schema.table)))
      for (const name of gaps.keys()) if (!names.has(name)) gaps.delete(name)
    },
    async next(most, signal) {
      if (rows === undefined) return undefined
      try {
        pending ??= await rows.pull(most, waitMs, signal)
      } catch (error) {
        if (signal.aborted || asFailure(error).code !== 'LOG_GAP') throw error
        await jump(signal)
        return undefined
      }
      return pending.count === 0 || isReached(pending.next, await sink.checkpoints(signal)) ? pending : undefined
    },
    async accept(round, unseen, signal) {
      const left = new Set([...round.passedOver.keys(), ...unseen])
      if (left.size > 0) await gap(left, signal)
      for (const count of round.passedOver.values()) passedOver += count
      passedOver += unseen.length
      looked += round.count - unseen.length
      rows?.accept(round)
      pending = undefined
      const proof = trail.applied(round.next)
      if (proof !== undefined && comparePositions(proof.position, upTo) > 0) upTo = proof.position
      if (round.count === 0 || rows === undefined) return
      const ends = await log.ends(rows.offsets, signal)
      const sum = (offsets: readonly Offset[]): number => offsets.reduce((sum, { offset }) => sum + offset, 0)
      if (sum(ends) - sum(rows.offsets) > mostBehind) await jump(signal)
    },
    state(covers) {
      const offsets: Record<string, number[]> = {}
      for (const { topic, partition, offset } of rows?.offsets ?? []) (offsets[topic] ??= [])[partition] = offset
      for (const [table, place] of gaps) {
        const asOf = covers.get(table)?.asOf
        if (asOf !== undefined && comparePositions(asOf, place) >= 0) gaps.delete(table)
      }
      const stretch: Stretch | undefined =
        after === undefined ? undefined : { after, upTo, gaps: Object.fromEntries(gaps) }
      return { stretch, offsets, looked, passedOver }
    },
  }
}

const nameOf = (schema: TableSchema | undefined): string | undefined => schema && tableName(schema.table)

/** Partitions that a target has no checkpoint of are of tables it does not apply yet. */
function isReached(wanted: readonly Offset[], checkpoints: readonly Offset[]): boolean {
  const at = new Map(checkpoints.map((checkpoint) => [partitionName(checkpoint), checkpoint.offset]))
  return wanted.every((offset) => (at.get(partitionName(offset)) ?? 0) >= offset.offset)
}
