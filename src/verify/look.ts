import type { TableReader } from '../connector.ts'
import { tableName, type TableSchema } from '../model.ts'
import { isOfAnotherKey, lineOf } from './chunk.ts'
import type { Ends, Suspect } from './compare.ts'
import type { DifferenceLine } from './journal.ts'
import type { Sight } from './open-rows.ts'
import { settle, type Settled, type Witness } from './settle.ts'

/** Rows of one table that are to be looked at. */
export type Look = { readonly schema: TableSchema; readonly rows: readonly Suspect[] }

/** Looks at rows of several tables, all at once, so that they share what has to be waited for; settles those that differ. */
export async function lookAt(
  ends: Ends,
  looks: readonly Look[],
  witness: Witness,
  limitMs: number,
  signal: AbortSignal,
): Promise<readonly Sight[]> {
  const shared = { source: inTurn(ends.source), target: inTurn(ends.target) }
  const failed = new AbortController()
  const either = AbortSignal.any([signal, failed.signal])
  const outcomes = await Promise.allSettled(
    looks.map(async ({ schema, rows }) => {
      try {
        const settled = await settle(shared, schema, rows, witness, limitMs, either)
        return settled.map((one) => sightOf(schema, one))
      } catch (error) {
        failed.abort(error)
        throw error
      }
    }),
  )
  if (failed.signal.aborted) throw failed.signal.reason
  return outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? outcome.value : []))
}

function sightOf(schema: TableSchema, one: Settled): Sight {
  const table = tableName(schema.table)
  const { key } = one.suspect
  if (one.kind === 'unknown') return { verdict: 'unknown', table, key, columns: [], why: one.why }
  // Told under the key that the source has it under.
  if (one.kind === 'same' || isOfAnotherKey(schema, one)) return { verdict: 'equal', table, key }
  return sightOfLine(lineOf(schema, one, 0, false))
}

export function sightOfLine({ table, key, what, columns, copies, position }: DifferenceLine): Sight {
  const names = columns.map(({ name }) => name)
  return { verdict: 'different', table, key, what, columns: names, ...(copies !== undefined && { copies }), position }
}

/** For callers that do not wait for each other: one call at a time. */
function inTurn(reader: TableReader): TableReader {
  let last: Promise<unknown> = Promise.resolve()
  const turn = async <T>(work: () => Promise<T>): Promise<T> => {
    const mine = last.then(work, work)
    last = mine
    return await mine
  }
  return {
    ranges: async (...args) => await turn(async () => await reader.ranges(...args)),
    split: async (...args) => await turn(async () => await reader.split(...args)),
    rows: (...args) => reader.rows(...args),
    lookup: async (...args) => await turn(async () => await reader.lookup(...args)),
    copies: async (...args) => await turn(async () => await reader.copies(...args)),
    [Symbol.asyncDispose]: async () => await reader[Symbol.asyncDispose](),
  }
}
