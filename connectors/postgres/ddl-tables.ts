import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import {
  selectCollations,
  selectColumnExtras,
  selectConstraints,
  selectExtensions,
  selectIndexes,
  selectNotCopied,
  selectSequences,
  selectTableExtras,
  selectUserTypes,
  type ConstraintRow,
} from './ddl-catalog.ts'
import {
  attachSteps,
  constraintSteps,
  indexSteps,
  inheritanceSteps,
  ownerSteps,
  sequenceSteps,
  tableStep,
  type Definitions,
} from './ddl-steps.ts'
import type { Section, Sections, Step } from './ddl.ts'
import { typeSteps } from './ddl-types.ts'
import { ident, literal, qualified, selectTypes } from './queries.ts'
import { readPartitioned, type CatalogTable } from './schema.ts'
import { firstUserOid } from './types.ts'

/**
 * Statements for these tables and what they cannot be without: schemas, extensions, collations, types, sequences,
 * partitioned parents, columns, keys before the copy; indexes, constraints and at last foreign keys after it. What needs a
 * function of the database's own is left out and listed; where that would change rows (a generated column, a type's check),
 * UNSUPPORTED.
 */
export async function tableSections(client: pg.ClientBase, leaves: readonly CatalogTable[]): Promise<Sections> {
  const tables = [...(await readPartitioned(client, leaves)), ...leaves]
  const oids = tables.map((table) => table.oid)
  const byOid = new Map(tables.map((table) => [table.oid, table]))
  const sequences = await selectSequences(client, oids)
  const identities = sequences.filter((row) => row.owned === 'i')
  const named = sequences.filter((row) => row.owned !== 'i')
  const from: Definitions = {
    tables,
    byOid,
    columns: new Map((await selectColumnExtras(client, oids)).map((row) => [`${row.table} ${row.attnum}`, row])),
    identities: new Map(identities.map((row) => [`${row.table} ${row.column}`, row])),
    extras: new Map((await selectTableExtras(client, oids)).map((row) => [row.oid, row])),
    notCopied: [],
    blocked: [],
  }
  const typeOids = (await selectTypes(client, oids)).map((type) => type.oid).filter((oid) => oid >= firstUserOid)
  const types = typeSteps(await selectUserTypes(client, typeOids), from.blocked)
  const collations = await selectCollations(client, oids, typeOids)
  const extensions = await selectExtensions(client, oids, typeOids)

  // Leaves first: what their parents then ask of them is there and is taken over, with its name.
  const depth = (oid: number): number => {
    const table = byOid.get(oid)
    return table?.kind === 'p' ? 1000 - table.ancestors.length : 0
  }
  const leavesFirst = (a: { readonly table: number }, b: { readonly table: number }): number =>
    depth(a.table) - depth(b.table)
  const constraints = (await selectConstraints(client, oids)).toSorted(leavesFirst)
  const indexes = (await selectIndexes(client, oids)).filter((row) => row.valid && row.constraint === null)
  const others = constraints.filter((row) => !isKey(row, byOid))
  const elsewhere = [...types.schemas, ...[...named, ...collations].map((row) => row.schema)]

  const before: Section = [
    ...[...new Set([...elsewhere, ...tables.map((table) => table.table.schema)])].map((name): Step => ({
      what: `schema ${name}`,
      probe: `exists (select from pg_namespace where nspname = ${literal(name)})`,
      sql: `create schema ${ident(name)}`,
    })),
    ...extensions.map((name): Step => ({
      what: `extension ${name}`,
      probe: `exists (select from pg_extension where extname = ${literal(name)})`,
      sql: `create extension ${ident(name)} schema public cascade`,
    })),
    ...collations.map((row): Step => ({
      what: `collation ${row.schema}.${row.name}`,
      probe: `to_regcollation(${literal(qualified(row))}) is not null`,
      sql: `create collation ${qualified(row)} (${row.options})`,
    })),
    ...types.steps,
    ...sequenceSteps(named),
    ...tables.map((table) => tableStep(from, table)),
    ...constraintSteps(
      from,
      constraints.filter((row) => isKey(row, byOid)),
    ),
    ...indexSteps(
      from,
      indexes.filter((row) => row.identity),
    ),
    ...attachSteps(from),
    ...ownerSteps(from, named),
  ]
  const after: Section = [
    ...constraintSteps(
      from,
      others.filter((row) => row.kind !== 'f'),
    ),
    ...indexSteps(from, indexes.filter((row) => !row.identity).toSorted(leavesFirst)),
    ...inheritanceSteps(from),
  ]
  const foreignKeys: Section = constraintSteps(
    from,
    others.filter((row) => row.kind === 'f'),
  )
  if (from.blocked.length > 0)
    throw new Failure('UNSUPPORTED', {
      observed: from.blocked.join('\n'),
      needed: 'what columns are made of can be copied without the functions of the database',
      next: 'Create the tables at the target by hand, or with pg_dump --schema-only, then run again',
    })
  const left = await selectNotCopied(client, oids, [...new Set(tables.map((table) => table.table.schema))])
  return {
    before: [before],
    after: [after, foreignKeys].filter((section) => section.length > 0),
    notCopied: [...from.notCopied, ...left],
  }
}

/** The primary key, and the constraint behind the index that identifies changes. */
function isKey(row: ConstraintRow, tables: ReadonlyMap<number, CatalogTable>): boolean {
  if (row.kind === 'p') return true
  return row.kind === 'u' && tables.get(row.table)?.identityIndex?.index === row.name
}
