import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import { tableName } from '../../src/model.ts'
import {
  selectColumnExtras,
  selectConstraints,
  selectExtensions,
  selectIndexes,
  selectNotCopied,
  selectSequences,
  selectTableExtras,
  selectUserTypes,
  type ConstraintRow,
  type PlainIndexRow,
  type SequenceRow,
} from './ddl-catalog.ts'
import type { Section, Sections, Step } from './ddl.ts'
import { typeSteps } from './ddl-types.ts'
import { ident, literal, qualified, selectTypes } from './queries.ts'
import { readPartitioned, type CatalogColumn, type CatalogTable } from './schema.ts'
import { firstUserOid } from './types.ts'

/**
 * Statements for these tables and what they cannot be without: schemas, extensions, types, sequences, partitioned
 * parents, columns, keys before the copy; indexes, constraints and at last foreign keys after it. What needs a function of
 * the database's own is left out and listed; where that would change rows (a generated column, a type's check), UNSUPPORTED.
 */
export async function tableSections(client: pg.ClientBase, leaves: readonly CatalogTable[]): Promise<Sections> {
  const parents = await readPartitioned(client, leaves)
  const tables = [...parents, ...leaves]
  const oids = tables.map((table) => table.oid)
  const byOid = new Map(tables.map((table) => [table.oid, table]))
  const byName = new Map(tables.map((table) => [tableName(table.table), table]))
  const notCopied: string[] = []
  const blocked: string[] = []

  const typeOids = (await selectTypes(client, oids)).map((type) => type.oid).filter((oid) => oid >= firstUserOid)
  const types = typeSteps(await selectUserTypes(client, typeOids), blocked)
  const sequences = await selectSequences(client, oids)
  const columnExtras = new Map(
    (await selectColumnExtras(client, oids)).map((row) => [`${row.table} ${row.attnum}`, row]),
  )
  const tableExtras = new Map((await selectTableExtras(client, oids)).map((row) => [row.oid, row]))
  const constraints = await selectConstraints(client, oids)
  const indexes = await selectIndexes(client, oids)
  const extensions = await selectExtensions(client, oids, typeOids)

  const identities = new Map(
    sequences.filter((row) => row.owned === 'i').map((row) => [`${row.table} ${row.column}`, row]),
  )
  const named = sequences.filter((row) => row.owned !== 'i')
  const schemas = [
    ...new Set([...types.schemas, ...named.map((row) => row.schema), ...tables.map((table) => table.table.schema)]),
  ]

  const columnText = (table: CatalogTable, column: CatalogColumn): string => {
    const extra = columnExtras.get(`${table.oid} ${column.attnum}`)
    const parts = [ident(column.name), column.type]
    if (extra?.collation) parts.push(`collate ${extra.collation}`)
    if (column.generated) {
      if (extra?.missing)
        blocked.push(`generated column ${tableName(table.table)}.${column.name} needs ${extra.missing}`)
      parts.push(`generated always as (${column.default ?? ''}) ${column.generated}`)
    } else if (column.identity && !table.isPartition) {
      // From version 17 on a partition has its parent's identity, and may not bring one of its own.
      const sequence = identities.get(`${table.oid} ${column.attnum}`)
      parts.push(`generated ${column.identity === 'always' ? 'always' : 'by default'} as identity`)
      if (sequence) parts.push(`(sequence name ${qualified(sequence)} ${sequenceOptions(sequence)})`)
    } else if (column.default !== undefined) {
      if (extra?.missing) notCopied.push(`default of ${tableName(table.table)}.${column.name} (needs ${extra.missing})`)
      else parts.push(`default ${column.default}`)
    }
    if (column.notNull) parts.push('not null')
    return parts.join(' ')
  }
  const tableStep = (table: CatalogTable): Step => {
    const extra = tableExtras.get(table.oid)
    const columns = table.columns.map((column) => `  ${columnText(table, column)}`).join(',\n')
    const partition = extra?.partitionKey ? ` partition by ${extra.partitionKey}` : ''
    const options = extra?.options?.length ? ` with (${extra.options.join(', ')})` : ''
    return {
      what: `table ${tableName(table.table)}`,
      probe: isRelation(table.table),
      sql: `create table ${qualified(table.table)} (\n${columns}\n)${partition}${options}`,
    }
  }
  const constraintStep = (row: ConstraintRow): Step | undefined => {
    const table = byOid.get(row.table)
    if (!table) return undefined
    const what = `constraint ${row.name} of ${tableName(table.table)}`
    if (row.missing !== null) {
      notCopied.push(`${what} (needs ${row.missing})`)
      return undefined
    }
    if (row.kind === 'f' && !byOid.has(row.target)) {
      notCopied.push(`${what} (the table it refers to is not copied)`)
      return undefined
    }
    return {
      what,
      probe: `exists (select from pg_constraint where conrelid = to_regclass(${literal(qualified(table.table))}) and conname = ${literal(row.name)})`,
      sql: `alter table ${qualified(table.table)} add constraint ${ident(row.name)} ${row.def}`,
    }
  }
  const indexStep = (row: PlainIndexRow): Step | undefined => {
    if (row.missing !== null) {
      notCopied.push(`index ${row.name} (needs ${row.missing})`)
      return undefined
    }
    // Without ONLY the partitions' own indexes, made before, are attached to it.
    const only = /^(CREATE (?:UNIQUE )?INDEX (?:"(?:[^"]|"")*"|\S+) ON) ONLY /
    return {
      what: `index ${row.name}`,
      probe: isRelation(row),
      sql: row.partitioned ? row.def.replace(only, '$1 ') : row.def,
    }
  }
  // Leaves first: what their parents then ask of them is there and is taken over, with its name.
  const depth = (oid: number): number =>
    byOid.get(oid)?.kind === 'p' ? 1000 - (byOid.get(oid)?.ancestors.length ?? 0) : 0
  const inOrder = constraints.toSorted((a, b) => depth(a.table) - depth(b.table))
  const keys = new Set(inOrder.filter((row) => isKey(row, byOid)))
  const others = inOrder.filter((row) => !keys.has(row))

  const keySteps = [...keys].map(constraintStep).filter(isStep)
  const identitySteps = indexes
    .filter((row) => row.identity)
    .map(indexStep)
    .filter(isStep)
  const attach = tables.flatMap((table): Step[] => {
    const parent = table.ancestors.at(-1)
    const bound = tableExtras.get(table.oid)?.bound
    if (parent === undefined || !bound) return []
    return [
      {
        what: `partition ${tableName(table.table)}`,
        probe: `exists (select from pg_inherits where inhrelid = to_regclass(${literal(qualified(table.table))}))`,
        sql: `alter table ${qualified(parent)} attach partition ${qualified(table.table)} ${bound}`,
      },
    ]
  })
  const owned = named.flatMap((row): Step[] => {
    const table = row.table === null ? undefined : byOid.get(row.table)
    const column = table?.columns.find(({ attnum }) => attnum === row.column)
    if (!table || !column) return []
    const sql = `alter sequence ${qualified(row)} owned by ${qualified(table.table)}.${ident(column.name)}`
    return [{ what: `sequence ${row.name}`, sql }]
  })
  const inherits = leaves.flatMap((table) =>
    table.parents.flatMap((parent): Step[] => {
      if (!byName.has(tableName(parent))) {
        notCopied.push(`inheritance of ${tableName(table.table)} from ${tableName(parent)}`)
        return []
      }
      return [
        {
          what: `inheritance of ${tableName(table.table)}`,
          probe: `exists (select from pg_inherits where inhrelid = to_regclass(${literal(qualified(table.table))}) and inhparent = to_regclass(${literal(qualified(parent))}))`,
          sql: `alter table ${qualified(table.table)} inherit ${qualified(parent)}`,
        },
      ]
    }),
  )
  const before: Section = [
    ...schemas.map((name): Step => ({
      what: `schema ${name}`,
      probe: `exists (select from pg_namespace where nspname = ${literal(name)})`,
      sql: `create schema ${ident(name)}`,
    })),
    ...extensions.map((name): Step => ({
      what: `extension ${name}`,
      probe: `exists (select from pg_extension where extname = ${literal(name)})`,
      sql: `create extension ${ident(name)} schema public cascade`,
    })),
    ...types.steps,
    ...named.map((row): Step => ({
      what: `sequence ${row.schema}.${row.name}`,
      probe: isRelation(row),
      sql: `create sequence ${qualified(row)} as ${row.type} ${sequenceOptions(row)}`,
    })),
    ...tables.map(tableStep),
    ...keySteps,
    ...identitySteps,
    ...attach,
    ...owned,
  ]
  const partitionedLast = indexes.filter((row) => !row.identity).toSorted((a, b) => depth(a.table) - depth(b.table))
  const after: Section = [
    ...others
      .filter((row) => row.kind !== 'f')
      .map(constraintStep)
      .filter(isStep),
    ...partitionedLast.map(indexStep).filter(isStep),
    ...inherits,
  ]
  const foreignKeys = others
    .filter((row) => row.kind === 'f')
    .map(constraintStep)
    .filter(isStep)
  if (blocked.length > 0)
    throw new Failure('UNSUPPORTED', {
      observed: blocked.join('\n'),
      needed: 'what columns are made of can be copied without the functions of the database',
      next: 'Create the tables at the target by hand, or with pg_dump --schema-only, then run again',
    })
  notCopied.push(...(await selectNotCopied(client, oids, [...new Set(tables.map((table) => table.table.schema))])))
  return { before: [before], after: [after, foreignKeys].filter((section) => section.length > 0), notCopied }
}

/** The primary key, and the constraint behind the index that identifies changes. */
function isKey(row: ConstraintRow, tables: ReadonlyMap<number, CatalogTable>): boolean {
  if (row.kind === 'p') return true
  return row.kind === 'u' && tables.get(row.table)?.identityIndex?.index === row.name
}

function isRelation(name: { readonly schema: string; readonly name: string }): string {
  return `to_regclass(${literal(qualified(name))}) is not null`
}

function isStep(step: Step | undefined): step is Step {
  return step !== undefined
}

function sequenceOptions(row: SequenceRow): string {
  return `increment by ${row.increment} minvalue ${row.min} maxvalue ${row.max} start with ${row.start} cache ${row.cache} ${row.cycle ? 'cycle' : 'no cycle'}`
}
