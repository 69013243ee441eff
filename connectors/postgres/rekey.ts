import type { Output } from '../../src/output.ts'
import { Tag, type Rows } from '../../src/rows.ts'
import { appendArrays, readTags, slice, width } from './arrays.ts'
import { beginBind, endBind } from './frontend.ts'
import { ident, qualified } from './queries.ts'
import {
  arrayOids,
  equals,
  firstForms,
  overriding,
  parametersOf,
  rowsFrom,
  wantedForm,
  wholeRow,
  type Plan,
  type Statement,
} from './statements.ts'

/** Appends the move of one row from its old key to its new one. The new image has absent cells, which stay as they are in the row. If a row is there under
 *  the new key already (the copy brought it), that one gets the cells and the old one goes. Raises if neither is there, unless it may miss. */
export function appendRekey(
  out: Output,
  plan: Plan,
  oldKey: Rows,
  newImage: Rows,
  mayMiss: boolean,
  name: (statement: Statement) => string,
): void {
  const { schema } = plan
  const old = slice(oldKey)
  const next = slice(newImage)
  const cells = width(old)
  const keyOnly = cells === schema.key.length && cells !== schema.columns.length
  const oldForms = keyOnly ? schema.key.map((c) => wantedForm(plan, c)) : firstForms(plan, schema.key, old)
  const described = keyOnly ? schema.key.flatMap((c) => schema.columns[c] ?? []) : schema.columns
  readTags(newImage, 0, plan.tags)
  const present = plan.all.filter((c) => plan.tags[c] !== Tag.absent)
  const newForms = firstForms(plan, present, next)
  for (;;) {
    const oldKeyForms = keyOnly ? oldForms : schema.key.map((c) => oldForms[c])
    const statement = write(
      plan,
      keyOnly,
      oldKeyForms,
      present,
      present.map((c) => newForms[c]),
      mayMiss,
    )
    const start = beginBind(out, name(statement), statement.types.length)
    const wrongOld = appendArrays(out, old, cells, oldForms, described)
    const wrongNew =
      wrongOld === undefined ? appendArrays(out, next, schema.columns.length, newForms, schema.columns) : undefined
    if (wrongOld === undefined && wrongNew === undefined) {
      endBind(out, start)
      return
    }
    out.at = start
    if (wrongOld !== undefined) oldForms[wrongOld] = 'text'
    if (wrongNew !== undefined) newForms[wrongNew] = 'text'
  }
}

type Forms = Parameters<typeof parametersOf>[2]

function write(
  plan: Plan,
  keyOnly: boolean,
  keyForms: Forms,
  present: readonly number[],
  newForms: Forms,
  mayMiss: boolean,
): Statement {
  const id = `rekey ${keyForms.join()} ${present.join()} ${newForms.join()} ${mayMiss}`
  const known = plan.statements.get(id)
  if (known) return known
  const { key } = plan.schema
  // As the image is walked: a whole row's by rising column, a key's in its own order.
  const pairs = key.map((c, i) => ({ c, form: keyForms[i] }))
  const cellOrder = keyOnly ? pairs : pairs.toSorted((a, b) => a.c - b.c)
  const before = parametersOf(
    plan,
    cellOrder.map(({ c }) => c),
    cellOrder.map(({ form }) => form),
  )
  const after = parametersOf(plan, present, newForms)
  const table = qualified(plan.schema.table)
  const set = after.map(({ c, column }) => `${ident(column.name)} = s.c${c}`).join(', ')
  const is = (row: string): string =>
    before.map(({ c, column }) => `t.${ident(column.name)} ${equals(column)} ${row}.c${c}`).join(' and ')
  const same = before.map(({ c, column }) => `o.c${c} ${equals(column)} s.c${c}`).join(' and ')
  const wanted = mayMiss ? '1' : '1 / (count(*) = 1)::int'
  const rows = `with o as materialized (select * from ${rowsFrom(before, 1)} x),
s as materialized (select * from ${rowsFrom(after, before.length + 1)} x)`
  const types = [...before, ...after].map(({ form }) => arrayOids[form])
  if (after.some(({ column }) => column.identity === 'always')) {
    // Takes a value from an INSERT alone.
    const { names, cells, kept } = wholeRow(plan, after)
    const out = kept.length === 0 ? '1' : kept.join(', ')
    const sql = `${rows},
there as (delete from only ${table} t using s where ${is('s')} returning ${out}),
gone as (delete from only ${table} t using o, s where ${is('o')} and not (${same}) returning ${out}),
taken as (select * from there union all select * from gone where not exists (select from there)),
touched as (insert into ${table} (${names})${overriding(plan)} select ${cells} from taken, s returning 1) select ${wanted} from touched`
    const made = { sql, types }
    plan.statements.set(id, made)
    return made
  }
  const changed = `${rows},
there as (update only ${table} t set ${set} from s where ${is('s')} returning 1),
gone as (delete from only ${table} t using o, s where ${is('o')} and not (${same}) and exists (select from there)),
moved as (update only ${table} t set ${set} from o, s where ${is('o')} and not exists (select from there) returning 1)`
  const made = {
    sql: `${changed} select ${wanted} from (table there union all table moved) touched`,
    types,
  }
  plan.statements.set(id, made)
  return made
}
