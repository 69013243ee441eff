import type { Form } from '../../src/model.ts'
import type { Output } from '../../src/output.ts'
import { Tag, type ChangeBatch } from '../../src/rows.ts'
import { appendArrays, readTags, slice, width, type Slice } from './arrays.ts'
import { beginBind, endBind } from './frontend.ts'
import { ident, qualified } from './queries.ts'
import {
  arrayOids,
  firstForms,
  overriding,
  parametersOf,
  rowsFrom,
  wholeRow,
  type Parameter,
  type Plan,
  type Statement,
} from './statements.ts'
import { textOf } from './types.ts'

type Side = { readonly images: Slice; readonly used: readonly number[]; readonly forms: (Form | undefined)[] }

/** Appends the update (or the delete, without a new image) of exactly one row that is the old image of change `i`, whichever of several equal ones.
 *  Compared is the text of every column: types without equality too, and values that are equal but print differently are told apart.
 *  Raises unless there is one, except with `loose`. */
export function appendByOldRow(
  out: Output,
  plan: Plan,
  batch: ChangeBatch,
  i: number,
  deletes: boolean,
  loose: boolean,
  name: (statement: Statement) => string,
): void {
  const old = sideOf(plan, slice(batch.images, 2 * i, 1))
  const next = deletes ? undefined : sideOf(plan, slice(batch.images, 2 * i + 1, 1))
  const cells = plan.schema.columns.length
  // A cell that is text where a native one was expected asks for another statement; each turn settles one.
  for (;;) {
    const statement = statementOf(plan, old, next, loose)
    const start = beginBind(out, name(statement), statement.types.length)
    const wrong = appendArrays(out, old.images, cells, old.forms, plan.schema.columns)
    if (wrong !== undefined) {
      out.at = start
      old.forms[wrong] = 'text'
      continue
    }
    const wrongNext = next && appendArrays(out, next.images, cells, next.forms, plan.schema.columns)
    if (next && wrongNext !== undefined) {
      out.at = start
      next.forms[wrongNext] = 'text'
      continue
    }
    endBind(out, start)
    return
  }
}

function sideOf(plan: Plan, images: Slice): Side {
  if (width(images) !== plan.schema.columns.length) throw new RangeError('a keyless change without its old or new row')
  const used: number[] = []
  readTags(images.rows, images.first, plan.tags)
  plan.tags.forEach((tag, c) => {
    if (tag !== Tag.absent) used.push(c)
  })
  return { images, used, forms: firstForms(plan, used, images) }
}

function statementOf(plan: Plan, old: Side, next: Side | undefined, loose: boolean): Statement {
  const id = `${loose ? 'loose ' : ''}${old.used.join()} ${old.forms.join()} ${next ? `${next.used.join()} ${next.forms.join()}` : 'delete'}`
  const known = plan.statements.get(id)
  if (known) return known
  const before = parameters(plan, old)
  const after = next && parameters(plan, next)
  const table = qualified(plan.schema.table)
  const same = before.map(
    ({ c, column }) => `${textOf(column, `x.${ident(column.name)}`)} is not distinct from ${textOf(column, `o.c${c}`)}`,
  )
  const row = `(select x.ctid from only ${table} x, ${rowsFrom(before, 1)} o where ${same.join(' and ')} limit 1)`
  const types = [...before, ...(after ?? [])].map(({ form }) => arrayOids[form])
  const made = guarded(change(plan, table, row, after, before.length + 1), types, loose)
  plan.statements.set(id, made)
  return made
}

/** CTEs to begin with, and the statement that returns a row for the one it changed. */
function change(
  plan: Plan,
  table: string,
  row: string,
  after: readonly Parameter[] | undefined,
  first: number,
): { readonly before: string; readonly sql: string } {
  if (!after) return { before: '', sql: `delete from only ${table} t where t.ctid = ${row} returning 1` }
  const from = rowsFrom(after, first)
  if (after.some(({ column }) => column.identity === 'always')) {
    // Takes a value from an INSERT alone.
    const { names, cells, kept } = wholeRow(plan, after)
    const taken = [...kept, ...after.map(({ c }) => `s.c${c}`)].join(', ')
    return {
      before: `gone as (delete from only ${table} t using ${from} s where t.ctid = ${row} returning ${taken}), `,
      sql: `insert into ${table} (${names})${overriding(plan)} select ${cells} from gone returning 1`,
    }
  }
  const set = after.map(({ c, column }) => `${ident(column.name)} = s.c${c}`).join(', ')
  return { before: '', sql: `update only ${table} t set ${set} from ${from} s where t.ctid = ${row} returning 1` }
}

function guarded({ before, sql }: ReturnType<typeof change>, types: readonly number[], loose: boolean): Statement {
  const counted = loose ? '1' : '1 / (count(*) = 1)::int'
  return { sql: `with ${before}touched as (${sql}) select ${counted} from touched`, types }
}

function parameters(plan: Plan, side: Side): readonly Parameter[] {
  return parametersOf(
    plan,
    side.used,
    side.used.map((c) => side.forms[c]),
  )
}
