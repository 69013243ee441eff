import fc from 'fast-check'
import { connected } from './shop.ts'
import { arrayText, quoted, type TypeColumn } from './type-tables.ts'

/** Names that have a meaning elsewhere: in JavaScript, in the envelope, in SQL; long ones, and ones of other letters. */
export const oddNames: readonly string[] = [
  '__proto__', 'constructor', 'toString', 'hasOwnProperty', 'key', 'op', 'source', 'before', 'after', 'absent', 'ts_ms', 'position', 'seq', 'value', 'Value', 'Envelope',
  'select', 'user', 'x', 's', 't', 'u', 'c0', 'whole_row', 'xmin_', '$1', 'a b', 'a.b', 'a"b', "a'b", 'a\\b', 'UPPER', 'ü', '列', '𝄞', '_', '1st', ' ', '%s', 'n'.repeat(63), 'ü'.repeat(31), 'a/b', 'a,b', '--', ';',
] // prettier-ignore

type Column = {
  readonly name: string
  readonly type: TypeColumn
  readonly array: boolean
  /** Leaves a hole: it is created and dropped before any row is written. */
  readonly dropped: boolean
}
type Kind = 'keyed' | 'composite' | 'keyless' | 'always' | 'by default'
export type RandomTable = {
  readonly schema: string
  readonly name: string
  readonly kind: Kind
  readonly columns: readonly Column[]
  readonly generated: boolean
}
export type Step = {
  readonly op: 'insert' | 'update' | 'update all' | 'move' | 'delete' | 'truncate' | 'begin' | 'commit' | 'rollback'
  /** Reduced to what there is. */
  readonly table: number
  readonly row: number
  readonly column: number
  readonly value: number
}

export function randomTables(types: readonly TypeColumn[]): fc.Arbitrary<readonly RandomTable[]> {
  const name = fc.constantFrom(...oddNames)
  const column = fc.record({
    name,
    type: fc.constantFrom(...types),
    array: fc.boolean(),
    dropped: fc.nat(5).map((n) => n === 0),
  })
  const table = fc.record({
    schema: fc.constantFrom('public', 'Ränd "Schema"', 'random.1', '__proto__'),
    name,
    kind: fc.constantFrom<Kind>('keyed', 'composite', 'keyless', 'always', 'by default'),
    columns: fc.uniqueArray(column, { selector: (each) => each.name, minLength: 1, maxLength: 8 }),
    generated: fc.boolean(),
  })
  return fc.uniqueArray(table, { selector: (each) => `${each.schema}/${each.name}`, minLength: 30, maxLength: 30 })
}

export function randomSteps(count: number): fc.Arbitrary<readonly Step[]> {
  const number = fc.nat(1 << 20)
  const op = fc.oneof(
    { weight: 30, arbitrary: fc.constant('insert' as const) },
    { weight: 25, arbitrary: fc.constant('update' as const) },
    { weight: 5, arbitrary: fc.constant('update all' as const) },
    { weight: 10, arbitrary: fc.constant('move' as const) },
    { weight: 10, arbitrary: fc.constant('delete' as const) },
    { weight: 1, arbitrary: fc.constant('truncate' as const) },
    { weight: 6, arbitrary: fc.constant('begin' as const) },
    { weight: 5, arbitrary: fc.constant('commit' as const) },
    { weight: 2, arbitrary: fc.constant('rollback' as const) },
  )
  return fc.array(fc.record({ op, table: number, row: number, column: number, value: number }), {
    minLength: count,
    maxLength: count,
  })
}

export const tableSql = ({ schema, name }: RandomTable): string => `${quoted(schema)}.${quoted(name)}`

/** Creates the schemas and tables. */
export async function createRandomTables(url: string, tables: readonly RandomTable[], version: number): Promise<void> {
  await using client = await connected(url)
  for (const table of tables) {
    const { kind } = table
    // The server itself refuses to identify rows by what it does not publish.
    const generated = table.generated && !(kind === 'keyless' && version >= 18)
    const identity = kind === 'always' || kind === 'by default' ? ` generated ${kind} as identity` : ''
    const parts = [
      `"id of it" bigint${identity} not null`,
      `"2nd" text collate "C" not null default 'k'`,
      ...table.columns.map(
        ({ name, type, array }) => `${quoted(name)} ${type.type}${array && type.delimiter ? '[]' : ''}`,
      ),
      ...(generated ? [`"made of it" bigint generated always as ("id of it" * 2) stored`] : []),
      ...(generated && version >= 18 ? [`"seen of it" text generated always as ("2nd" || '!') virtual`] : []),
    ]
    const key =
      kind === 'keyless' ? [] : [kind === 'composite' ? 'primary key ("2nd", "id of it")' : 'primary key ("id of it")']
    await client.query(`create schema if not exists ${quoted(table.schema)}`)
    await client.query(`create table ${tableSql(table)} (${[...parts, ...key].join(', ')})`)
    for (const { name, dropped } of table.columns)
      if (dropped) await client.query(`alter table ${tableSql(table)} drop column ${quoted(name)}`)
    if (kind === 'keyless') await client.query(`alter table ${tableSql(table)} replica identity full`)
  }
}

/** Runs the steps, each a statement or a bound of a transaction; every row it writes has an id of its own. Resolves with the statements that changed rows. */
export async function runSteps(
  url: string,
  tables: readonly RandomTable[],
  steps: readonly Step[],
  firstId: number,
): Promise<number> {
  await using client = await connected(url)
  let id = firstId
  let open = false
  let changes = 0
  for (const step of steps) {
    const table = tables[step.table % tables.length]
    if (!table) continue
    const name = tableSql(table)
    const columns = table.columns.filter(({ dropped }) => !dropped)
    const overriding = table.kind === 'always' ? 'overriding system value ' : ''
    // A row as it stands, whatever came before.
    const row = `"id of it" = (select "id of it" from ${name} order by "id of it" offset ${step.row % 7} limit 1)`
    const one = columns[step.column % Math.max(columns.length, 1)]
    const before = changes++
    switch (step.op) {
      case 'insert': {
        const given = columns.map((_, c) => `, $${c + 1}`).join('')
        const names = columns.map((column) => `, ${quoted(column.name)}`).join('')
        await client.query(
          `insert into ${name} ("id of it"${names}) ${overriding}values (${++id}${given})`,
          columns.map((column, c) => valueOf(column, step.value + 7 * c)),
        )
        break
      }
      case 'update':
        if (one)
          await client.query(`update ${name} set ${quoted(one.name)} = $1 where ${row}`, [valueOf(one, step.value)])
        break
      case 'update all':
        if (one) await client.query(`update ${name} set ${quoted(one.name)} = $1`, [valueOf(one, step.value)])
        break
      case 'move':
        await client.query(
          table.kind === 'composite' || table.kind === 'always'
            ? `update ${name} set "2nd" = $1 where ${row}`
            : `update ${name} set "id of it" = ${++id}, "2nd" = $1 where ${row}`,
          [`k${step.value}`],
        )
        break
      case 'delete':
        await client.query(`delete from ${name} where ${row}`)
        break
      case 'truncate':
        await client.query(`truncate ${name}`)
        break
      default:
        changes = before
        if ((step.op === 'begin') === open) break
        await client.query(step.op)
        open = !open
    }
  }
  if (open) await client.query('commit')
  return changes
}

function valueOf({ type, array }: Column, n: number): string | null {
  const { values, delimiter } = type
  const short = values.filter(({ length }) => length < 100_000)
  const pick = (from: number): string => short[from % short.length] ?? ''
  if (n % 9 === 0) return null
  return array && delimiter ? arrayText([pick(n), pick(n >> 3), pick(n >> 5)], delimiter, n % 4) : pick(n)
}
