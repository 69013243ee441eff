import type { TypeRow } from './ddl-catalog.ts'
import type { Step } from './ddl.ts'
import { ident, literal, qualified } from './queries.ts'

/** Statements for these types, those they are made of first. What cannot be copied is added to `blocked`. */
export function typeSteps(
  rows: readonly TypeRow[],
  blocked: string[],
): { readonly steps: readonly Step[]; readonly schemas: readonly string[] } {
  const byOid = new Map(rows.map((row) => [row.oid, row]))
  const done = new Set<number>()
  const steps: Step[] = []
  const schemas = new Set<string>()
  const visit = (row: TypeRow): void => {
    if (done.has(row.oid)) return
    done.add(row.oid)
    // An extension brings its own.
    if (row.extension !== null) return
    for (const oid of row.uses) {
      const used = byOid.get(oid)
      if (used) visit(used)
    }
    const sql = statement(row, blocked)
    if (sql === undefined) return
    schemas.add(row.schema)
    if (row.range) schemas.add(row.range.multirange.schema)
    steps.push({
      what: `type ${row.schema}.${row.name}`,
      probe: `to_regtype(${literal(qualified(row))}) is not null`,
      sql,
    })
  }
  for (const row of rows) visit(row)
  return { steps, schemas: [...schemas] }
}

function statement(row: TypeRow, blocked: string[]): string | undefined {
  const name = qualified(row)
  switch (row.kind) {
    case 'e':
      return `create type ${name} as enum (${(row.labels ?? []).map(literal).join(', ')})`
    case 'd': {
      const checks = row.checks ?? []
      for (const check of checks)
        if (check.missing !== null) blocked.push(`domain ${row.schema}.${row.name} needs ${check.missing}`)
      return [
        `create domain ${name} as ${row.base ?? ''}`,
        ...(row.collation === null ? [] : [`collate ${row.collation}`]),
        ...(row.default === null ? [] : [`default ${row.default}`]),
        ...(row.notnull ? ['not null'] : []),
        ...checks.map((check) => `constraint ${ident(check.name)} ${check.def}`),
      ].join(' ')
    }
    case 'c':
      if (row.relkind !== 'c') {
        blocked.push(`a column has the row type of table ${row.schema}.${row.name}`)
        return undefined
      }
      return `create type ${name} as (${(row.attributes ?? [])
        .map(
          ({ name, type, collation }) => `${ident(name)} ${type}${collation === null ? '' : ` collate ${collation}`}`,
        )
        .join(', ')})`
    case 'r': {
      if (!row.range) return undefined
      const { subtype, multirange, collation, opclass, diff, foreign } = row.range
      if (foreign) blocked.push(`range ${row.schema}.${row.name} needs ${foreign}`)
      const options = [
        `subtype = ${subtype}`,
        ...(opclass ? [`subtype_opclass = ${opclass}`] : []),
        ...(collation ? [`collation = ${collation}`] : []),
        ...(diff ? [`subtype_diff = ${diff}`] : []),
        `multirange_type_name = ${qualified(multirange)}`,
      ]
      return `create type ${name} as range (${options.join(', ')})`
    }
    default:
      // Arrays and multiranges come with the type they are of.
      if (row.kind === 'm' || row.uses.length > 0 || row.name.startsWith('_')) return undefined
      blocked.push(`type ${row.schema}.${row.name} is written in another language`)
      return undefined
  }
}
