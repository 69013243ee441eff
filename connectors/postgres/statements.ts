import { Failure } from '../../src/errors.ts'
import { tableName, type Form, type TableSchema } from '../../src/model.ts'
import type { Output } from '../../src/output.ts'
import { Tag } from '../../src/rows.ts'
import { appendArrays, readTags, width, type Slice } from './arrays.ts'
import { beginBind, endBind } from './frontend.ts'
import { ident, qualified } from './queries.ts'
import type { CatalogColumn, CatalogTable } from './schema.ts'
import { fromText, nativeOids } from './types.ts'

/** What a statement does with its rows.
 *  `insert`: no key. `upsert`: by key. `update`: present columns by key; raises unless each row is there. `updateLoose`: the same without the check.
 *  `delete`: by key, a missing row is fine. `require`: nothing but to see that each key is there. */
export type Kind = 'insert' | 'upsert' | 'update' | 'updateLoose' | 'delete' | 'require'
export type Statement = { readonly sql: string; readonly types: readonly number[] }

/** A table of the source as it is written at the target. */
export type Plan = {
  readonly schema: TableSchema
  readonly catalog: CatalogTable
  /** The target's column for each of the source's; undefined: not written, the target computes it. */
  readonly columns: readonly (CatalogColumn | undefined)[]
  /** Indexes of all of the source's columns. */
  readonly all: readonly number[]
  readonly statements: Map<string, Statement>
  /** Scratch, one byte a column. */
  readonly tags: Uint8Array
}

export const arrayOids: Readonly<Record<Form, number>> = {
  bool: 1000,
  bytes: 1001,
  int64: 1016,
  int16: 1005,
  int32: 1007,
  float32: 1021,
  float64: 1022,
  text: 1009,
}
const arrayTypes: Readonly<Record<Form, string>> = {
  bool: 'bool[]',
  bytes: 'bytea[]',
  int64: 'int8[]',
  int16: 'int2[]',
  int32: 'int4[]',
  float32: 'float4[]',
  float64: 'float8[]',
  text: 'text[]',
}
/** Of the count of rows a guarded statement expects, its last parameter. */
const int8 = 20

/** Throws TARGET_SHAPE if the target lacks a column. */
export function planTable(schema: TableSchema, catalog: CatalogTable): Plan {
  const byName = new Map(catalog.columns.map((column) => [column.name, column]))
  const columns = schema.columns.map(({ name }) => {
    const column = byName.get(name)
    if (!column)
      throw new Failure('TARGET_SHAPE', {
        object: tableName(schema.table),
        observed: `column ${name} is missing at the target`,
      })
    return column.generated ? undefined : column
  })
  const all = columns.map((_, c) => c)
  return { schema, catalog, columns, all, statements: new Map(), tags: new Uint8Array(columns.length) }
}

/** Appends a Bind and an Execute of the statement that does `kind` with these images and `columns` of them; `name` gives the prepared statement's. All
 *  images have the same columns. Images of deletes may hold the key alone, in its order. */
export function appendStatement(
  out: Output,
  plan: Plan,
  kind: Kind,
  columns: readonly number[],
  images: Slice,
  name: (statement: Statement) => string,
): void {
  const cells = width(images)
  const { schema } = plan
  const keyOnly = cells !== schema.columns.length && cells === schema.key.length
  const used = keyOnly ? schema.key : ascending(columns)
  const wanted = keyOnly ? used.map((c) => wantedForm(plan, c)) : firstForms(plan, used, images)
  const described = keyOnly ? schema.key.map((c) => schema.columns[c] ?? missing(c)) : schema.columns
  for (;;) {
    const statement = statementOf(plan, kind, used, keyOnly ? wanted : used.map((c) => wanted[c]))
    const guarded = statement.types.at(-1) === int8
    const start = beginBind(out, name(statement), statement.types.length)
    const text = appendArrays(out, images, cells, wanted, described)
    if (text === undefined) {
      if (guarded) {
        out.reserve(12)
        const at = out.bytes.writeInt32BE(8, out.at)
        out.at = out.bytes.writeBigInt64BE(BigInt(images.count), at)
      }
      endBind(out, start)
      return
    }
    out.at = start
    wanted[text] = 'text'
  }
}

function ascending(columns: readonly number[]): readonly number[] {
  for (let i = 1; i < columns.length; i++)
    if ((columns[i - 1] ?? 0) > (columns[i] ?? 0)) return columns.toSorted((a, b) => a - b)
  return columns
}

function missing(c: number): never {
  throw new RangeError(`column ${c} is not in the schema`)
}

/** The native form where the target's type takes its value without loss, else text. */
export function wantedForm({ schema, columns }: Plan, c: number): Form | undefined {
  const column = columns[c]
  const form = schema.columns[c]?.form
  if (column === undefined || form === undefined) return undefined
  const own = column.base.oid
  // A float's cast to numeric rounds, and a boolean's to text prints another word than the source does.
  if (form === 'float32' || form === 'float64') return own === 700 || own === 701 ? form : 'text'
  if (form === 'bool' || form === 'bytes') return own === nativeOids[form] ? form : 'text'
  return form
}

/** What the first image suggests: cells of one column are nearly always all native or all text. */
export function firstForms(plan: Plan, used: readonly number[], images: Slice): (Form | undefined)[] {
  const wanted: (Form | undefined)[] = Array.from({ length: plan.schema.columns.length }, () => undefined)
  readTags(images.rows, images.first, plan.tags)
  for (const c of used) wanted[c] = plan.tags[c] === Tag.text && plan.columns[c] ? 'text' : wantedForm(plan, c)
  return wanted
}

function statementOf(
  plan: Plan,
  kind: Kind,
  columns: readonly number[],
  forms: readonly (Form | undefined)[],
): Statement {
  const id = `${kind} ${columns.join()} ${forms.join()}`
  const known = plan.statements.get(id)
  if (known) return known
  const made = write(plan, kind, parametersOf(plan, columns, forms))
  plan.statements.set(id, made)
  return made
}

export function parametersOf(
  plan: Plan,
  columns: readonly number[],
  forms: readonly (Form | undefined)[],
): readonly Parameter[] {
  return columns.flatMap((c, i) => {
    const form = forms[i]
    const column = plan.columns[c]
    return form === undefined || column === undefined ? [] : [{ c, form, column }]
  })
}

/** One column as an array parameter. */
export type Parameter = { readonly c: number; readonly form: Form; readonly column: CatalogColumn }

function write(plan: Plan, kind: Kind, parameters: readonly Parameter[]): Statement {
  const types = parameters.map(({ form }) => arrayOids[form])
  const table = qualified(plan.schema.table)
  const names = parameters.map(({ column }) => ident(column.name))
  const keys = new Set(plan.schema.key)
  const keyed = parameters.filter(({ c }) => keys.has(c))
  if (kind !== 'insert' && keyed.length !== keys.size)
    throw new Failure('TARGET_SHAPE', {
      object: tableName(plan.schema.table),
      observed: 'a column of the key is missing or generated at the target',
    })
  const others = parameters.filter(({ c }) => !keys.has(c))
  const from = rowsFrom(parameters, 1)
  const where = keyed.map(({ c, column }) => `t.${ident(column.name)} ${equals(column)} s.c${c}`).join(' and ')
  if (others.some(({ column }) => column.identity === 'always'))
    if (kind === 'upsert' || kind === 'update' || kind === 'updateLoose')
      return writeAnew(plan, kind, parameters, where)
  const set = others.map(({ c, column }) => `${ident(column.name)} = s.c${c}`).join(', ')
  const updated =
    set === ''
      ? `select 1 from only ${table} t, ${from} s where ${where}`
      : `update only ${table} t set ${set} from ${from} s where ${where} returning 1`
  switch (kind) {
    case 'insert':
    case 'upsert': {
      // By another name, as a table may be called excluded.
      const insert = `insert into ${table} as t (${names.join(', ')})${overriding(plan)} select ${parameters.map(({ c }) => `s.c${c}`).join(', ')} from ${from} s`
      if (kind === 'insert') return { sql: insert, types }
      const conflict = keyed.map(({ column }) => ident(column.name)).join(', ')
      const excluded = others.map(({ column }) => `${ident(column.name)} = excluded.${ident(column.name)}`).join(', ')
      const action = excluded === '' ? 'do nothing' : `do update set ${excluded}`
      return { sql: `${insert} on conflict (${conflict}) ${action}`, types }
    }
    case 'update':
      return counted(updated, types)
    case 'require':
      return counted(`select 1 from only ${table} t, ${from} s where ${where}`, types)
    case 'updateLoose':
      return { sql: updated, types }
    case 'delete':
      return { sql: `delete from only ${table} t using ${from} s where ${where}`, types }
    default:
      return kind satisfies never
  }
}

/** `upsert` and `update` of a table with an identity that is always generated and not in the key: such a column takes a value from an INSERT alone, so
 *  the row is taken out and put back. */
function writeAnew(
  plan: Plan,
  kind: 'upsert' | 'update' | 'updateLoose',
  given: readonly Parameter[],
  where: string,
): Statement {
  const types = given.map(({ form }) => arrayOids[form])
  const table = qualified(plan.schema.table)
  const from = rowsFrom(given, 1)
  if (kind === 'upsert') {
    const names = given.map(({ column }) => ident(column.name)).join(', ')
    const cells = given.map(({ c }) => `s.c${c}`).join(', ')
    // Counted, so that all of them are gone before the first one comes.
    const sql = `with gone as (delete from only ${table} t using ${from} s where ${where} returning 1)
insert into ${table} (${names})${overriding(plan)} select ${cells} from ${from} s where (select count(*) from gone) >= 0`
    return { sql, types }
  }
  const { names, cells, kept } = wholeRow(plan, given)
  const gone = `gone as (delete from only ${table} t using ${from} s where ${where} returning ${[...kept, ...given.map(({ c }) => `s.c${c}`)].join(', ')})`
  const back = `insert into ${table} (${names})${overriding(plan)} select ${cells} from gone`
  return kind === 'update' ? counted(`${back} returning 1`, types, `${gone}, `) : { sql: `with ${gone} ${back}`, types }
}

/** All columns of a row to put back: its cells by name, those given as `c<n>`, the others, which `kept` takes out of `t`, as `k<n>`. */
export function wholeRow(
  { catalog }: Plan,
  given: readonly Parameter[],
): { readonly names: string; readonly cells: string; readonly kept: readonly string[] } {
  const byAttnum = new Map(given.map(({ c, column }) => [column.attnum, `c${c}`]))
  const columns = catalog.columns.filter(({ generated }) => !generated)
  return {
    names: columns.map(({ name }) => ident(name)).join(', '),
    cells: columns.map(({ attnum }) => byAttnum.get(attnum) ?? `k${attnum}`).join(', '),
    kept: columns.flatMap(({ attnum, name }) => (byAttnum.has(attnum) ? [] : [`t.${ident(name)} as k${attnum}`])),
  }
}

/** The value of an identity that is always generated is the source's. */
export function overriding({ catalog }: Plan): string {
  return catalog.columns.some(({ identity }) => identity === 'always') ? ' overriding system value' : ''
}

/** Raises division by zero unless as many rows are returned as were sent: an expectation checked after the commit would be none. */
export function counted(sql: string, types: readonly number[], before = ''): Statement {
  const wrapped = `with ${before}touched as (${sql}) select 1 / (count(*) = $${types.length + 1})::int from touched`
  return { sql: wrapped, types: [...types, int8] }
}

/** The parameters from number `first` on as a table of the target's types. */
export function rowsFrom(parameters: readonly Parameter[], first: number): string {
  const arrays = parameters.map(({ form }, i) => `$${first + i}::${arrayTypes[form]}`)
  const cast = parameters.map(({ c, form, column }) => {
    const value = form === 'text' ? fromText(column, `u.c${c}`) : `u.c${c}::${column.castType}`
    return `${value} as c${c}`
  })
  return `(select ${cast.join(', ')} from unnest(${arrays.join(', ')}) u (${parameters.map(({ c }) => `c${c}`).join(', ')}))`
}

/** The equality operator of a type from an extension stands where the type does, and our search path is the catalog's alone. */
export function equals({ base }: CatalogColumn): string {
  return base.oid >= 16384 && base.kind === 'b' ? `operator(${ident(base.schema)}.=)` : '='
}
