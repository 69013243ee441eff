import { randomUUID } from 'node:crypto'
import type { Lane } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import { partitionName, type Advance, type Checkpoint, type TopicPartition } from '../../src/model.ts'
import type { LaneBatch } from '../../src/rows.ts'
import { slice } from './arrays.ts'
import { arrive } from './barrier.ts'
import { close } from './config.ts'
import { mapError, sqlState } from './errors.ts'
import { failpoint } from '../../src/failpoint.ts'
import { RoundTripError } from './frontend.ts'
import type { Session } from './lane-session.ts'
import { load } from './load.ts'
import { appendChanges, appendGuard, isGuardFailure, isRejection, replay } from './ordered.ts'
import { repair } from './repair.ts'
import { insertCheckpoints, selectPartitions, terminateHolders, updateClaims } from './sink-queries.ts'
import { appendStatement, type Kind } from './statements.ts'
import { bulkFormats } from './types.ts'

/** A lane on a session of its own, which it ends when disposed of. After a rejected call whose failure is not of the data, open another one. */
export function openLane(session: Session): Lane {
  const { client } = session
  return {
    claim: (partitions, generation, signal) =>
      session.call(signal, async () => await claim(session, partitions, generation)),
    apply: (batch, advances, signal) => session.call(signal, async () => await apply(session, batch, advances)),
    arrive: (barrier, advance, signal) => session.call(signal, async () => await arrive(session, barrier, advance)),
    load: (schema, chunk, data, epoch, signal) =>
      session.call(signal, async () => await load(session, schema, chunk, data, epoch)),
    repair: (at, schema, read, signal) =>
      session.call(signal, async () => {
        await session.nameWrites()
        await repair(session, at, schema, read)
      }),
    formats(schema) {
      const table = session.targets.get(schema.table)
      // Without the same columns on both sides bytes would land in the wrong ones.
      if (!table || table.columns.some(({ generated }) => generated))
        return table ? textOnly(schema.columns, table.columns) : []
      return bulkFormats(table)
    },
    async [Symbol.asyncDispose]() {
      await close(client)
    },
  }
}

type Named = readonly { readonly name: string }[]
function textOnly(
  source: Named,
  target: readonly { readonly name: string; readonly generated: unknown }[],
): readonly string[] {
  const written = new Set(target.filter(({ generated }) => !generated).map(({ name }) => name))
  return source.every(({ name }) => written.has(name)) ? ['text'] : []
}

const claimAttempts = 5

async function claim(
  session: Session,
  partitions: readonly TopicPartition[],
  generation: number,
): Promise<readonly Checkpoint[]> {
  const { client, pipeline, log } = session
  if (partitions.length === 0) return []
  await session.nameWrites()
  for (let attempt = 1; ; attempt++) {
    try {
      return await session.durably(async () => {
        await insertCheckpoints(client, pipeline, partitions)
        const taken = await updateClaims(client, pipeline, partitions, generation, randomUUID())
        if (taken !== new Set(partitions.map(partitionName)).size)
          throw new Failure('FENCED', {
            object: partitions.map(partitionName).join(', '),
            observed: `a generation after ${generation} has claimed`,
          })
        failpoint('claim.before-commit')
        return await selectPartitions(client, pipeline, partitions, false)
      }, `set local lock_timeout = '2s'`)
    } catch (error) {
      if (sqlState(error) !== '55P03' || attempt === claimAttempts) throw error
      const ended = await terminateHolders(client, pipeline, partitions)
      log.warn({ partitions: partitions.length, ended }, 'ended the stuck session of a former worker')
    }
  }
}

const kinds: readonly (readonly Kind[])[] = [['delete'], ['update', 'updateLoose'], ['upsert']]

async function apply(
  session: Session,
  batch: LaneBatch,
  advances: readonly Advance[],
): Promise<readonly TopicPartition[]> {
  for (const { schema } of batch.groups) await session.plan(schema)
  for (const schema of batch.inOrder?.schemas ?? []) await session.plan(schema)
  for (let attempt = 1; ; attempt++) {
    try {
      await applyFolded(session, batch, advances)
      return []
    } catch (error) {
      if (!isGuardFailure(error)) throw rejection(error)
      const lost = await lostAmong(session, advances)
      if (lost.length > 0) return lost
      // The row changed after the statement's snapshot and fits now: the snapshot was too old to see our own claim.
      if (attempt === 3) throw rejection(error)
    }
  }
}

function rejection(error: unknown): unknown {
  return error instanceof RoundTripError ? mapError(error.cause) : error
}

async function applyFolded(session: Session, batch: LaneBatch, advances: readonly Advance[]): Promise<void> {
  const { out, name } = session
  appendGuard(session, advances)
  for (const wanted of kinds) {
    for (const group of batch.groups) {
      const kind = group.kind === 'update' && group.mayMiss ? 'updateLoose' : group.kind
      if (!wanted.includes(kind) || group.rows.count === 0) continue
      appendStatement(out, session.planned(group.schema), kind, group.columns, slice(group.rows), name)
    }
  }
  const { inOrder } = batch
  if (inOrder) for (let i = 0; i < inOrder.count;) i = appendChanges(session, inOrder, i, batch.mayMiss, true)
  try {
    await session.send()
  } catch (error) {
    if (!(error instanceof RoundTripError) || error.completed === 0 || !isRejection(sqlState(error.cause))) throw error
    session.log.debug({ state: sqlState(error.cause) }, 'a batch is applied again change by change')
    await replay(session, batch, advances)
  }
}

/** Partitions whose row is not as its advance expects. */
async function lostAmong(session: Session, advances: readonly Advance[]): Promise<readonly TopicPartition[]> {
  const { client, pipeline } = session
  const rows = await selectPartitions(
    client,
    pipeline,
    advances.map(({ to }) => to),
    false,
  )
  const now = new Map(rows.map((row) => [partitionName(row), row]))
  return advances
    .filter(({ from, to }) => {
      const row = now.get(partitionName(to))
      return !row || row.claim !== to.claim || row.offset !== from || row.hold !== to.hold || row.loose !== to.loose
    })
    .map(({ to: { topic, partition } }) => ({ topic, partition }))
}
