import { tableName, type ShapeEntry } from '../../src/model.ts'
import type { TypeRow } from './ddl-catalog.ts'
import { plainText } from './definition-text.ts'

/** A type of the users' own; none for what comes with an extension, or with the type it is of. */
export function typeEntry(row: TypeRow): readonly ShapeEntry[] {
  if (row.extension !== null) return []
  const name = tableName(row)
  const entry = (text: string, parts: Readonly<Record<string, string>>): readonly ShapeEntry[] => [
    { kind: 'type', table: '', name, text, parts },
  ]
  switch (row.kind) {
    case 'e': {
      const labels = JSON.stringify(row.labels ?? [])
      return entry(labels, { labels })
    }
    case 'd': {
      const checks = (row.checks ?? []).map(({ def }) => plainText(def)).toSorted()
      const definition = [row.base ?? '', row.collation ?? '', row.notnull ? 'not null' : '', ...checks].join('; ')
      return entry(definition, { definition, default: plainText(row.default ?? '') })
    }
    case 'c': {
      const fields = (row.attributes ?? []).map(({ name, type, collation }) => `${name} ${type} ${collation ?? ''}`)
      return entry(fields.join(', '), { definition: fields.join(', ') })
    }
    case 'r': {
      if (row.range === null) return []
      const { subtype, collation, opclass, diff, foreign } = row.range
      const definition = [subtype, collation, opclass].map((part) => part ?? '').join('; ')
      return entry(definition, { definition, functions: [diff, foreign].map((part) => part ?? '').join('; ') })
    }
    default:
      return []
  }
}
