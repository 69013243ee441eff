import { Failure } from '../../src/errors.ts'
import { tableName, type TableChange } from '../../src/model.ts'
import { addressed, missingAt, statementsFor, wordsFor } from './alter.ts'
import { mapError, sqlState } from './errors.ts'
import type { Session } from './lane-session.ts'
import { readCatalog, type CatalogTable } from './schema.ts'
import type { SchemaEffect } from './version.ts'

/** Makes the target's table what the source's is from this place on, in the transaction of the arrival. What somebody did by hand before counts as
 *  done. Where an operator is to do it, or only one can, TABLE_CHANGED with the statements: all before is applied, nothing after it. */
export async function changeTable(session: Session, { schema, changes }: SchemaEffect): Promise<void> {
  const { client, log } = session
  const name = tableName(schema.table)
  // Not the lanes' common picture: what this transaction does others do not see yet.
  const found = await readCatalog(client, (table) => tableName(table) === name)
  const target = found.find(({ table }) => tableName(table) === name)
  if (!target) throw new Failure('TABLE_MISSING', { object: name, observed: 'not at the target' })
  const { missing, conflict } = missingAt(target, changes)
  if (missing.length === 0) return
  const refuse = (why: string | undefined, cause?: unknown): Failure => stopped(schema.table, missing, why, cause)
  if (conflict !== undefined) throw refuse(conflict)
  if (session.ddl === 'stop') throw refuse(undefined)
  const unproved = missing.filter((change) => 'proved' in change && !change.proved)
  if (unproved.length > 0) throw refuse('what the rows that are there must hold cannot be proved')
  const elsewhere = partitionOnly(target)
  if (elsewhere !== undefined) throw refuse(elsewhere)
  for (const change of missing) {
    for (const statement of statementsFor(schema.table, change)) {
      try {
        await client.query(statement)
      } catch (error) {
        const state = sqlState(error)
        // Nobody's fault, and gone by the next attempt: locks, connections, resources.
        if (state === undefined || /^(08|40|53|55|57|58)/.test(state)) throw error
        const failure = mapError(error, name)
        throw refuse(failure instanceof Failure ? failure.facts.observed : failure.message, error)
      }
    }
  }
  log.info({ table: name, changes: wordsFor(missing) }, 'the table was changed as at the source')
}

function partitionOnly({ isPartition, ancestors }: CatalogTable): string | undefined {
  const root = ancestors[0]
  if (!isPartition || root === undefined) return undefined
  return `it is a partition at the target: columns are those of ${tableName(root)}, whose other partitions are at other places of the log`
}

function stopped(
  table: SchemaEffect['schema']['table'],
  missing: readonly TableChange[],
  why: string | undefined,
  cause: unknown,
): Failure {
  return new Failure('TABLE_CHANGED', {
    object: tableName(table),
    observed: [`at the source ${wordsFor(missing).join('; ')}`, ...(why === undefined ? [] : [why])].join(': '),
    needed: 'the same at the target',
    effect: 'every change before it is applied, none after it; nothing is lost while the log and the source keep them',
    next: ['Run at the target, then start again:', ...addressed(table, missing)].join('\n'),
    ...(cause === undefined ? {} : { cause }),
  })
}
