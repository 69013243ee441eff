import picomatch from 'picomatch'
import type { Finding, TableFilter } from '../connector.ts'
import type { TableId } from '../model.ts'

/** Our own tables live here at a target; they are never part of a pipeline. */
const ownSchema = 'crossfade'

type Part = (name: string) => boolean

/** The two parts of `schema.table`, split at the first dot outside double quotes. A part in double quotes is taken literally ("" is a quote);
 *  others match the whole name as it is in the catalog, upper and lower case apart, with `*`, `?` and `[abc]`. Undefined: not of this form. */
export function parsePattern(pattern: string): { readonly schema: Part; readonly table: Part } | undefined {
  const [, schema, table] = /^("(?:[^"]|"")+"|[^".]+)\.("(?:[^"]|"")+"|[^"]+)$/.exec(pattern) ?? []
  return schema === undefined || table === undefined ? undefined : { schema: part(schema), table: part(table) }
}

function part(text: string): Part {
  if (text.startsWith('"')) {
    const literal = text.slice(1, -1).replaceAll('""', '"')
    return (name) => name === literal
  }
  // Names are no paths: no slash stops a star, and no name or sign at the start is special.
  const flat = (name: string): string => `=${name.replaceAll('/', '\u{f0000}')}`
  const matches = picomatch(flat(text), {
    dot: true,
    nobrace: true,
    noextglob: true,
    noglobstar: true,
    nonegate: true,
    strictSlashes: true,
  })
  return (name) => name === text || matches(flat(name))
}

/** By its own name, or by that of what it is a part of. */
const matcher = (pattern: string): TableFilter => {
  const parsed = parsePattern(pattern)
  const fits = (table: TableId): boolean =>
    parsed !== undefined && parsed.schema(table.schema) && parsed.table(table.name)
  return (table, within = []) => fits(table) || within.some(fits)
}

/** Tables that at least one of `include` and none of `exclude` matches. A partition is matched by the name of a table above it too, and left out with it:
 *  `exclude` wins on whichever of the names it matches. */
export function tableFilter(include: readonly string[], exclude: readonly string[]): TableFilter {
  const wanted = include.map(matcher)
  const unwanted = exclude.map(matcher)
  return (table, within) =>
    table.schema !== ownSchema &&
    wanted.some((test) => test(table, within)) &&
    !unwanted.some((test) => test(table, within))
}

/** What is odd about the patterns, given every table there is: one that matches none, or nothing left to do. */
export function patternFindings(
  include: readonly string[],
  exclude: readonly string[],
  tables: readonly { readonly table: TableId; readonly within?: readonly TableId[] | undefined }[],
): readonly Finding[] {
  const idle = (patterns: readonly string[], key: string, left: TableFilter): readonly Finding[] =>
    patterns
      .filter((pattern) => {
        const matches = matcher(pattern)
        return !tables.some(({ table, within }) => left(table, within) && matches(table, within))
      })
      .map((pattern) => ({
        id: 'tables.pattern',
        level: 'warning',
        observed: `${key}: "${pattern}" matches no table`,
        needed: 'each pattern matches at least one table',
        remedy: `Correct or remove it; names are compared as they are, upper and lower case apart`,
      }))
  const filter = tableFilter(include, exclude)
  return [
    ...(tables.some(({ table, within }) => filter(table, within))
      ? []
      : [
          {
            id: 'tables.none',
            level: 'blocker',
            observed: 'no table of the source is included',
            needed: 'at least one table',
            remedy: 'Change tables.include and tables.exclude, e.g. include: ["*.*"]',
          } as const,
        ]),
    ...idle(include, 'tables.include', () => true),
    ...idle(exclude, 'tables.exclude', tableFilter(include, [])),
  ]
}
