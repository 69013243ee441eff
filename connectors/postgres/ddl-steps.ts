import { tableName, type TableId } from '../../src/model.ts'
import type { ColumnExtra, ConstraintRow, TableIndexRow, SequenceRow, TableExtra } from './ddl-catalog.ts'
import type { Step } from './ddl.ts'
import { ident, literal, qualified } from './queries.ts'
import type { CatalogColumn, CatalogTable } from './schema.ts'

/** What the statements are made from: these tables, partitioned parents included, and what the catalog knows beside them. */
export type Definitions = {
  readonly tables: readonly CatalogTable[]
  readonly byOid: ReadonlyMap<number, CatalogTable>
  /** By `<table> <number of the column>`. */
  readonly columns: ReadonlyMap<string, ColumnExtra>
  readonly identities: ReadonlyMap<string, SequenceRow>
  readonly extras: ReadonlyMap<number, TableExtra>
  /** What is left out, for people. */
  readonly notCopied: string[]
  /** What would change rows if it were left out. */
  readonly blocked: string[]
}

export function tableStep(from: Definitions, table: CatalogTable): Step {
  const extra = from.extras.get(table.oid)
  const columns = table.columns.map((column) => `  ${columnText(from, table, column)}`).join(',\n')
  const partition = extra?.partitionKey ? ` partition by ${extra.partitionKey}` : ''
  const options = extra?.options?.length ? ` with (${extra.options.join(', ')})` : ''
  return {
    what: `table ${tableName(table.table)}`,
    probe: isRelation(table.table),
    sql: `create table ${qualified(table.table)} (\n${columns}\n)${partition}${options}`,
  }
}

function columnText(
  { columns, identities, blocked, notCopied }: Definitions,
  table: CatalogTable,
  column: CatalogColumn,
): string {
  const extra = columns.get(`${table.oid} ${column.attnum}`)
  const parts = [ident(column.name), column.type]
  if (extra?.collation) parts.push(`collate ${extra.collation}`)
  if (column.generated) {
    if (extra?.missing) blocked.push(`generated column ${tableName(table.table)}.${column.name} needs ${extra.missing}`)
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

export function constraintSteps(from: Definitions, rows: readonly ConstraintRow[]): readonly Step[] {
  return rows.flatMap((row): Step[] => {
    const table = from.byOid.get(row.table)
    if (!table) return []
    const what = `constraint ${row.name} of ${tableName(table.table)}`
    if (row.missing !== null) from.notCopied.push(`${what} (needs ${row.missing})`)
    else if (row.kind === 'f' && !from.byOid.has(row.target))
      from.notCopied.push(`${what} (the table it refers to is not copied)`)
    else
      return [
        {
          what,
          // A table has one key, whatever it is called: whether it is the same is for the check of the target.
          probe: `exists (select from pg_constraint where conrelid = ${relation(table.table)} and ${
            row.kind === 'p' ? `contype = 'p'` : `conname = ${literal(row.name)}`
          })`,
          sql: `alter table ${qualified(table.table)} add constraint ${ident(row.name)} ${row.def}`,
        },
      ]
    return []
  })
}

export function indexSteps(from: Definitions, rows: readonly TableIndexRow[]): readonly Step[] {
  // Without ONLY the partitions' own indexes, made before, are attached to it.
  const only = /^(CREATE (?:UNIQUE )?INDEX (?:"(?:[^"]|"")*"|\S+) ON) ONLY /
  return rows.flatMap((row): Step[] => {
    if (row.missing !== null) {
      from.notCopied.push(`index ${row.name} (needs ${row.missing})`)
      return []
    }
    const sql = row.partitioned ? row.def.replace(only, '$1 ') : row.def
    return [{ what: `index ${row.name}`, probe: isRelation(row), sql }]
  })
}

export function attachSteps({ tables, extras }: Definitions): readonly Step[] {
  return tables.flatMap((table): Step[] => {
    const parent = table.ancestors.at(-1)
    const bound = extras.get(table.oid)?.bound
    if (parent === undefined || !bound) return []
    return [
      {
        what: `partition ${tableName(table.table)}`,
        probe: `exists (select from pg_inherits where inhrelid = ${relation(table.table)})`,
        sql: `alter table ${qualified(parent)} attach partition ${qualified(table.table)} ${bound}`,
      },
    ]
  })
}

export function inheritanceSteps({ tables, notCopied }: Definitions): readonly Step[] {
  const names = new Set(tables.map(({ table }) => tableName(table)))
  return tables.flatMap(({ table, parents }) =>
    parents.flatMap((parent): Step[] => {
      const what = `inheritance of ${tableName(table)}`
      if (!names.has(tableName(parent))) {
        notCopied.push(`${what} from ${tableName(parent)}`)
        return []
      }
      return [
        {
          what,
          probe: `exists (select from pg_inherits where inhrelid = ${relation(table)} and inhparent = ${relation(parent)})`,
          sql: `alter table ${qualified(table)} inherit ${qualified(parent)}`,
        },
      ]
    }),
  )
}

/** Sequences that are no identity's. */
export function sequenceSteps(rows: readonly SequenceRow[]): readonly Step[] {
  return rows.map((row) => ({
    what: `sequence ${row.schema}.${row.name}`,
    probe: isRelation(row),
    sql: `create sequence ${qualified(row)} as ${row.type} ${sequenceOptions(row)}`,
  }))
}

export function ownerSteps({ byOid }: Definitions, rows: readonly SequenceRow[]): readonly Step[] {
  return rows.flatMap((row): Step[] => {
    const table = row.table === null ? undefined : byOid.get(row.table)
    const column = table?.columns.find(({ attnum }) => attnum === row.column)
    if (!table || !column) return []
    const sql = `alter sequence ${qualified(row)} owned by ${qualified(table.table)}.${ident(column.name)}`
    return [{ what: `sequence ${row.name}`, sql }]
  })
}

function sequenceOptions(row: SequenceRow): string {
  return `increment by ${row.increment} minvalue ${row.min} maxvalue ${row.max} start with ${row.start} cache ${row.cache} ${row.cycle ? 'cycle' : 'no cycle'}`
}

function relation(name: TableId): string {
  return `to_regclass(${literal(qualified(name))})`
}

function isRelation(name: TableId): string {
  return `${relation(name)} is not null`
}
