import type pg from 'pg'
import { tableName, type ShapeEntry } from '../../src/model.ts'
import { selectConstraints, selectIndexes, type ConstraintRow } from './ddl-catalog.ts'
import { indexText, plainText } from './definition-text.ts'
import type { CatalogTable } from './schema.ts'
import { selectRules, selectTriggers } from './shape-queries.ts'

/** What entries are made from; parents of partitions are among the tables. */
export type Described = {
  readonly tables: readonly CatalogTable[]
  readonly byOid: ReadonlyMap<number, CatalogTable>
  readonly oids: readonly number[]
}

/** The table that an object of this one is inherited from. */
export function heir(table: CatalogTable, inherited: boolean): { readonly of?: string } {
  const parent = table.ancestors.at(-1) ?? table.parents[0]
  return inherited && parent !== undefined ? { of: tableName(parent) } : {}
}

const constraints: Readonly<Record<string, 'check' | 'foreign key' | 'exclusion'>> = {
  c: 'check',
  f: 'foreign key',
  x: 'exclusion',
}
const standing = /(?: NOT VALID| NOT ENFORCED)+$/

/** All but those that an index stands for. */
export async function constraintEntries(client: pg.Client, from: Described): Promise<readonly ShapeEntry[]> {
  return (await selectConstraints(client, from.oids)).flatMap((row): ShapeEntry[] => {
    const table = from.byOid.get(row.table)
    const kind = constraints[row.kind]
    if (table === undefined || kind === undefined) return []
    const parts = {
      enforced: row.def.includes(' NOT ENFORCED') && standing.test(row.def) ? 'no' : 'yes',
      validated: row.validated ? 'yes' : 'no',
      ...(isOutside(row, from) && { foreign: 'yes' }),
    }
    const { name, def } = row
    const means = plainText(def.replace(standing, ''))
    return [{ kind, table: tableName(table.table), name, means, text: def, parts, ...heir(table, row.inherited) }]
  })
}

function isOutside(row: ConstraintRow, { byOid }: Described): boolean {
  return row.kind === 'f' && !byOid.has(row.target)
}

const stands: Readonly<Record<string, string>> = { p: 'a primary key', u: 'a constraint' }

export async function indexEntries(client: pg.Client, from: Described): Promise<readonly ShapeEntry[]> {
  return (await selectIndexes(client, from.oids)).flatMap((row): ShapeEntry[] => {
    const table = from.byOid.get(row.table)
    if (table === undefined || row.constraint === 'x') return []
    const { method, columns, include, nulls, options, where } = indexText(row.using)
    const one = { table: tableName(table.table), name: row.name, text: row.using, ...heir(table, row.inherited) }
    const valid = row.valid ? 'yes' : 'no'
    if (!row.unique)
      return [
        {
          kind: 'index',
          means: plainText(`${method} ${columns.join()} ${include} ${where}`),
          parts: { valid, options },
          ...one,
        },
      ]
    // Rows are told apart by the same columns in any order and direction.
    const bare = columns.map((column) => column.replace(/(?: ASC| DESC)?(?: NULLS (?:FIRST|LAST))?$/, ''))
    return [
      {
        kind: 'unique',
        means: [...bare.toSorted(), nulls, where].join('; '),
        parts: {
          valid,
          as: stands[row.constraint ?? ''] ?? 'an index',
          columns: columns.join(', '),
          include,
          deferrable: row.deferrable,
          options,
        },
        ...one,
      },
    ]
  })
}

const fires: Readonly<Record<string, string>> = { O: 'yes', D: 'no', R: 'for replicated rows', A: 'always' }

/** Triggers, rules and policies. */
export async function triggerEntries(client: pg.Client, from: Described): Promise<readonly ShapeEntry[]> {
  const triggers = (await selectTriggers(client, from.oids)).map((row) => ({ ...row, kind: 'trigger' as const }))
  const rules = (await selectRules(client, from.oids)).map((row) => ({ ...row, inherited: false }))
  return [...triggers, ...rules].flatMap(({ table: oid, kind, name, def, enabled, inherited }): ShapeEntry[] => {
    const table = from.byOid.get(oid)
    if (table === undefined) return []
    const parts = { definition: plainText(def), enabled: fires[enabled] ?? enabled }
    const shown = { definition: def }
    return [{ kind, table: tableName(table.table), name, text: def, parts, shown, ...heir(table, inherited) }]
  })
}
