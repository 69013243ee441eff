import { tableName, type TableChange, type TableId } from '../../src/model.ts'
import { ident, literal, qualified } from './queries.ts'
import type { CatalogColumn, CatalogTable } from './schema.ts'

/** The statements that make a change at the target. */
export function statementsFor(table: TableId, change: TableChange): readonly string[] {
  const alter = `ALTER TABLE ${qualified(table)}`
  const column = ident(change.column)
  switch (change.kind) {
    case 'drop':
      return [`${alter} DROP COLUMN ${column}`]
    case 'rename':
      return [`${alter} RENAME COLUMN ${column} TO ${ident(change.to)}`]
    case 'retype':
      return [`${alter} ALTER COLUMN ${column} TYPE ${change.type}`]
    case 'nullable':
      return [`${alter} ALTER COLUMN ${column} ${change.nullable ? 'DROP' : 'SET'} NOT NULL`]
    case 'compute': {
      const kind = change.stored ? 'STORED' : 'VIRTUAL'
      const collate = change.collation === undefined ? '' : ` COLLATE ${change.collation}`
      return [
        `${alter} ADD COLUMN ${column} ${change.type}${collate} GENERATED ALWAYS AS (${change.expression}) ${kind}`,
      ]
    }
    case 'add': {
      const { type, collation, value } = change
      const filled = value === undefined ? '' : ` DEFAULT ${literal(value)}::${type}`
      const add = `${alter} ADD COLUMN ${column} ${type}${collation === undefined ? '' : ` COLLATE ${collation}`}${filled}`
      if (change.default !== undefined) return [add, `${alter} ALTER COLUMN ${column} SET DEFAULT ${change.default}`]
      return value === undefined ? [add] : [add, `${alter} ALTER COLUMN ${column} DROP DEFAULT`]
    }
    default:
      return change satisfies never
  }
}

/** All of them as an operator runs them. */
export function addressed(table: TableId, changes: readonly TableChange[]): readonly string[] {
  return changes.flatMap((change) => {
    const note = noteFor(change)
    return [...(note === undefined ? [] : [`-- ${note}`]), ...statementsFor(table, change).map((sql) => `${sql};`)]
  })
}

function noteFor(change: TableChange): string | undefined {
  if (!('proved' in change) || change.proved) return undefined
  if (change.kind === 'retype')
    return `column ${change.column}: with the USING clause of the source’s own statement, if it had one`
  if (change.kind === 'add') return `column ${change.column}: then give the rows that are there the source’s values`
  return `column ${change.column}: its expression needs something of the source’s own`
}

/** Each change in words. */
export function wordsFor(changes: readonly TableChange[]): readonly string[] {
  return changes.map((change) => {
    switch (change.kind) {
      case 'add':
        return `column ${change.column} ${change.type} was added`
      case 'compute':
        return `column ${change.column} ${change.type}, computed from others, was added`
      case 'drop':
        return `column ${change.column} was dropped`
      case 'rename':
        return `column ${change.column} was renamed to ${change.to}`
      case 'retype':
        return `column ${change.column} ${change.from} became ${change.type}`
      case 'nullable':
        return `column ${change.column} ${change.nullable ? 'takes NULL' : 'takes no NULL any more'}`
      default:
        return change satisfies never
    }
  })
}

/** Those of the changes that the target's table does not have yet: whoever made one by hand made it so that rows fit. `conflict`: why it can be neither
 *  changed nor taken as it is. Each is judged by the table as the ones before it leave it; no name is freed and added anew among them. */
export function missingAt(
  target: CatalogTable,
  changes: readonly TableChange[],
): { readonly missing: readonly TableChange[]; readonly conflict: string | undefined } {
  const columns = new Map(target.columns.map((column) => [column.name, column]))
  const missing: TableChange[] = []
  let conflict: string | undefined
  for (const change of changes) {
    if (isThere(columns, change, changes)) continue
    missing.push(change)
    conflict ??= conflictWith(columns, change, tableName(target.table))
    const column = columns.get(change.column)
    if (change.kind !== 'drop' && change.kind !== 'rename') continue
    columns.delete(change.column)
    if (change.kind === 'rename' && column !== undefined) columns.set(change.to, column)
  }
  return { missing, conflict }
}

type Columns = ReadonlyMap<string, CatalogColumn>

function isThere(columns: Columns, change: TableChange, all: readonly TableChange[]): boolean {
  const column = columns.get(change.column)
  switch (change.kind) {
    case 'drop':
      // A name that is used again: whether the old column has it still, or the one that is to take it.
      return column === undefined || isTaken(columns, change.column, all)
    case 'rename':
      return columns.has(change.to) && (column === undefined || isTaken(columns, change.column, all))
    case 'add':
      return column !== undefined && !column.generated && column.type === change.type
    case 'compute':
      return column !== undefined && column.generated !== false
    case 'retype':
      return (
        column !== undefined && [column.type, `${column.type} collate ${column.collation?.name}`].includes(change.type)
      )
    case 'nullable':
      return column !== undefined && (change.nullable ? !column.notNull : column.notNull)
    default:
      return change satisfies never
  }
}

/** Whether a column that is renamed to this name has it already: its own former name is free, or taken in the same way. */
function isTaken(columns: Columns, name: string, all: readonly TableChange[]): boolean {
  const heir = all.find((other) => other.kind === 'rename' && other.to === name)
  return heir !== undefined && (!columns.has(heir.column) || isTaken(columns, heir.column, all))
}

function conflictWith(columns: Columns, change: TableChange, table: string): string | undefined {
  if (change.kind === 'rename' && columns.has(change.to))
    return `${table} has both ${change.column} and ${change.to} at the target`
  const column = columns.get(change.column)
  if ((change.kind !== 'add' && change.kind !== 'compute') || column === undefined) return undefined
  return `${table}.${change.column} is ${column.type} at the target`
}
