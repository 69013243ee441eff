import { Failure } from '../../src/errors.ts'
import { tableName, type Advance } from '../../src/model.ts'
import { Op, Tag, type ChangeBatch, type LaneBatch } from '../../src/rows.ts'
import { readTags, slice } from './arrays.ts'
import { mapError, sqlState } from './errors.ts'
import { appendTextBind, RoundTripError } from './frontend.ts'
import { appendByOldRow } from './keyless.ts'
import type { Session } from './lane-session.ts'
import { guard, guardTypes } from './sink-queries.ts'
import { appendStatement, type Plan, type Statement } from './statements.ts'

/** Appends changes first, first + 1, … of one statement: one change, or a run of inserts into one table without a key. Returns the next one. */
export function appendChanges(
  session: Session,
  batch: ChangeBatch,
  first: number,
  mayMiss: boolean,
  runs: boolean,
): number {
  const table = batch.table[first]
  const schema = batch.schemas[table ?? -1]
  const op = batch.op[first]
  if (schema === undefined || op === undefined) throw new RangeError(`change ${first} of ${batch.count}`)
  const plan = session.planned(schema)
  const { out, name } = session
  const images = slice(batch.images, 2 * first + 1, 1)
  const one = first + 1
  const keyed = schema.key.length > 0
  switch (op) {
    case Op.insert:
    case Op.read: {
      let next = one
      if (runs && !keyed) while (next < batch.count && batch.op[next] === op && batch.table[next] === table) next++
      const run = slice(batch.images, 2 * first + 1, next - first, 2)
      appendStatement(out, plan, keyed ? 'upsert' : 'insert', plan.all, run, name)
      return next
    }
    case Op.update: {
      if (!keyed) {
        appendByOldRow(out, plan, batch, first, false, mayMiss, name)
        return one
      }
      const columns = presentColumns(plan, batch, 2 * first + 1)
      const kind = columns.length === plan.all.length ? 'upsert' : mayMiss ? 'updateLoose' : 'update'
      appendStatement(out, plan, kind, columns, images, name)
      return one
    }
    case Op.delete: {
      if (keyed) appendStatement(out, plan, 'delete', schema.key, slice(batch.images, 2 * first, 1), name)
      else appendByOldRow(out, plan, batch, first, true, mayMiss, name)
      return one
    }
    default:
      throw new Failure('UNSUPPORTED', {
        object: tableName(schema.table),
        observed: 'a change that describes itself only to a target of the source’s kind',
      })
  }
}

function presentColumns(plan: Plan, batch: ChangeBatch, image: number): readonly number[] {
  readTags(batch.images, image, plan.tags)
  return plan.tags.includes(Tag.absent) ? plan.all.filter((c) => plan.tags[c] !== Tag.absent) : plan.all
}

const guardStatement: Statement = { sql: guard, types: guardTypes }

/** The first statement of every batch. */
export function appendGuard({ out, name, pipeline }: Session, advances: readonly Advance[]): void {
  const steps = advances.map(({ from, to }) => ({
    t: to.topic,
    p: to.partition,
    f: from,
    n: to.offset,
    m: to.mark.position,
    s: to.mark.seq,
    e: to.captureEpoch,
    c: to.claim,
    h: to.hold ?? null,
    l: to.loose,
  }))
  appendTextBind(out, name(guardStatement), [pipeline, JSON.stringify(steps), String(steps.length)])
}

/** States after which a batch is tried again change by change: data, constraints, checks, triggers. */
export function isRejection(state: string | undefined): boolean {
  return state !== undefined && /^(22|23|44|P0)/.test(state)
}

const divisionByZero = '22012'
export function isGuardFailure(error: unknown): boolean {
  return error instanceof RoundTripError && error.completed === 0 && sqlState(error.cause) === divisionByZero
}

const pieceBytes = 1 << 20
const pieceChanges = 500

/** Applies a batch change by change in the source's order, constraints at the end: what passes there passes here. Throws the failure of the guard as it is
 *  (a RoundTripError of which nothing is completed); ROW_REJECTED and TARGET_DRIFTED name the change. */
export async function replay(session: Session, batch: LaneBatch, advances: readonly Advance[]): Promise<void> {
  const { client, out } = session
  const ordered = batch.ordered()
  for (const schema of ordered.schemas) await session.plan(schema)
  session.drop()
  await client.query('begin; set constraints all deferred')
  try {
    appendGuard(session, advances)
    await session.send()
    for (let i = 0; i < ordered.count;) {
      const first = i
      while (i < ordered.count && out.at < pieceBytes && i - first < pieceChanges)
        i = appendChanges(session, ordered, i, batch.mayMiss, false)
      try {
        await session.send()
      } catch (error) {
        throw error instanceof RoundTripError ? rejected(ordered, first + error.completed, error.cause) : error
      }
    }
    try {
      await client.query('commit')
    } catch (error) {
      const failure = mapError(error)
      throw failure instanceof Failure && isRejection(sqlState(error))
        ? new Failure('ROW_REJECTED', { ...failure.facts, observed: `at the commit: ${failure.facts.observed}` })
        : failure
    }
  } catch (error) {
    session.drop()
    await client.query('rollback').catch(() => {})
    throw error
  }
}

function rejected(batch: ChangeBatch, i: number, cause: unknown): Error {
  const state = sqlState(cause)
  const transaction = batch.transactions.findLast(({ first }) => first <= i)
  const schema = batch.schemas[batch.table[i] ?? -1]
  const failure = mapError(cause)
  if (!isRejection(state) || !transaction || !schema || !(failure instanceof Failure)) return failure
  const at = `change ${transaction.position} ${transaction.firstSeq + 4 * (i - transaction.first)}`
  const object = tableName(schema.table)
  if (state === divisionByZero) return new Failure('TARGET_DRIFTED', { object, observed: `no row for ${at}` })
  return new Failure('ROW_REJECTED', { object, observed: `${at}: ${failure.facts.observed ?? failure.message}` })
}
