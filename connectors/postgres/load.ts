import { failpoint } from '../../src/failpoint.ts'
import { Failure } from '../../src/errors.ts'

import { tableName, type Chunk, type Epoch, type TableSchema } from '../../src/model.ts'
import type { Rows, ChunkData } from '../../src/rows.ts'
import { slice } from './arrays.ts'
import { mapError, sqlState } from './errors.ts'
import { copyIn, RoundTripError } from './frontend.ts'
import type { Session } from './lane-session.ts'
import { isRejection } from './ordered.ts'
import { ident, qualified } from './queries.ts'
import { rangeCondition } from './ranges.ts'
import { beginChunk, finishChunk, selectSnapshot } from './sink-queries.ts'
import { appendStatement, type Plan } from './statements.ts'

/** Loads a chunk and marks it done in one transaction, or neither (H22). First, in a commit of its own, who works on it is noted, which ends the session of
 *  a stuck predecessor. The copy's row is locked only at the end: a copy that moves to another snapshot waits for no load, and the load fails. */
export async function load(
  session: Session,
  schema: TableSchema,
  chunk: Chunk,
  data: ChunkData,
  epoch: Epoch,
): Promise<number | undefined> {
  const { client, pipeline } = session
  const object = `${tableName(schema.table)}, chunk ${chunk.id}`
  const plan = await session.plan(schema)
  const begun = await session.durably(async () => await beginChunk(client, pipeline, chunk, epoch))
  if (begun === undefined) throw new Failure('FENCED', { object, observed: 'a later lease works on it' })
  if (begun.done) return undefined
  failpoint('load.after-begin')
  return await session.durably(
    async () => {
      const demandSnapshot = async (lock: boolean): Promise<void> => {
        if ((await selectSnapshot(client, pipeline, schema.table, lock)) !== chunk.snapshot)
          throw new Failure('SNAPSHOT_LOST', { object, observed: 'the copy has moved on from the chunk’s snapshot' })
      }
      await demandSnapshot(false)
      if (chunk.replace) await removeRange(session, plan, chunk)
      const rows =
        data.kind === 'frames'
          ? await loadFrames(session, plan, data.format, data.frames, object)
          : await loadRows(session, plan, data.batches, object)
      await demandSnapshot(true)
      failpoint('load.before-mark')
      if (!(await finishChunk(client, pipeline, chunk, epoch, rows)))
        throw new Failure('FENCED', { object, observed: 'a later lease works on it' })
      failpoint('load.before-commit')
      return rows
    },
    await session.unhurried(),
  )
}

async function removeRange({ client }: Session, plan: Plan, chunk: Chunk): Promise<void> {
  const key = plan.schema.key.flatMap((c) => plan.columns[c] ?? [])
  const condition = rangeCondition(chunk, { columns: plan.columns.flatMap((column) => column ?? []), key })
  await client.query(`delete from only ${qualified(plan.schema.table)} t where ${condition}`)
}

async function loadFrames(
  { client }: Session,
  plan: Plan,
  format: string,
  frames: AsyncIterable<Uint8Array>,
  object: string,
): Promise<number> {
  const columns = plan.schema.columns.map(({ name }) => ident(name)).join(', ')
  const how = format === 'text' ? '' : ' with (format binary)'
  try {
    return await copyIn(client, `copy ${qualified(plan.schema.table)} (${columns}) from stdin${how}`, watched(frames))
  } catch (error) {
    throw error instanceof RoundTripError ? rejected(error.cause, object) : error
  }
}

async function* watched(frames: AsyncIterable<Uint8Array>): AsyncIterable<Uint8Array> {
  for await (const piece of frames) {
    yield piece
    failpoint('copy.in-chunk')
  }
}

const pieceRows = 2000
const pieceBytes = 4 << 20

async function loadRows(session: Session, plan: Plan, batches: AsyncIterable<Rows>, object: string): Promise<number> {
  const kind = plan.schema.key.length > 0 ? 'upsert' : 'insert'
  let total = 0
  for await (const rows of batches) {
    for (let first = 0; first < rows.count;) {
      let count = 1
      const limit = (rows.starts[first] ?? 0) + pieceBytes
      while (first + count < rows.count && count < pieceRows && (rows.starts[first + count] ?? 0) < limit) count++
      appendStatement(session.out, plan, kind, plan.all, slice(rows, first, count), session.name)
      try {
        await session.send()
      } catch (error) {
        throw error instanceof RoundTripError ? rejected(error.cause, object) : error
      }
      first += count
      total += count
      failpoint('copy.in-chunk')
    }
  }
  return total
}

function rejected(cause: unknown, object: string): Error {
  const failure = mapError(cause, object)
  if (!(failure instanceof Failure) || !isRejection(sqlState(cause))) return failure
  return new Failure('ROW_REJECTED', { ...failure.facts })
}
