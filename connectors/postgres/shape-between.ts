import { numbersOf, type Between } from './column-numbers.ts'
import type { Relation } from './pgoutput.ts'
import { attributesOf, byNumber, relationDifference, sentColumns, unknown, type SentColumn } from './shape.ts'
import type { Shape, ShapeColumn } from './source-queries.ts'

/**
 * The table as the stream sends it, at a place between two looks at its catalog; in words why that cannot be proved. `declare`: types
 * that neither look shows. What the message does not tell is taken so that no row is refused.
 */
export function shapeBetween(
  relation: Relation,
  between: Between,
  declare: (sent: SentColumn) => string | undefined,
): Shape | string {
  const numbers = numbersOf(relation, between)
  if (typeof numbers === 'string') return numbers
  const { before, now } = between
  const older = byNumber(before)
  const newer = byNumber(now)
  const columns: ShapeColumn[] = []
  for (const [i, sent] of relation.columns.entries()) {
    const number = numbers[i] ?? 0
    const all = [newer.get(number), older.get(number)].filter((column) => column !== undefined)
    const [base] = all
    const like = all.find(({ type, typmod }) => type === sent.typeOid && typmod === sent.typmod)
    // Never stricter than at any moment in between.
    const notNull = older.get(number)?.notNull === true && newer.get(number)?.notNull === true
    const declared = like?.declared ?? declare(sent) ?? `type ${sent.typeOid}`
    if (base === undefined) {
      columns.push(passing(number, sent, declared))
      continue
    }
    const { collation } = like ?? base
    const [now, then = now] = all
    const touched = now?.touched === then?.touched && all.length === 2 ? base.touched : unknown
    columns.push({
      ...base,
      name: sent.name,
      type: sent.typeOid,
      typmod: sent.typmod,
      declared,
      collation,
      notNull,
      touched,
    })
  }
  const exact = relationDifference(relation, now) === undefined
  // Computed of columns as they stand now, and of no effect on what is sent.
  const computed = (exact ? now : before).columns.filter(
    ({ number, generated }) => generated !== '' && newer.has(number),
  )
  const all = [...columns, ...computed].toSorted((a, b) => a.number - b.number)
  const there = new Set(all.map(({ number }) => number))
  return {
    ...before,
    // A rewrite of whatever is still to come is told from the look before.
    ...(exact ? { relfilenode: now.relfilenode, touched: now.touched } : {}),
    columns: all,
    dropped: [...before.dropped, ...now.dropped.filter(({ number }) => older.has(number) && !there.has(number))],
    attributes: attributesOf(all),
  }
}

/** The table as before, but for NOT NULL that is no longer there: no row tells where it went, and the next one may hold NULL. */
export function loosened(before: Shape, now: Shape): Shape | undefined {
  const newer = byNumber(now)
  const goes = ({ number, notNull }: ShapeColumn): boolean => notNull && newer.get(number)?.notNull === false
  if (!before.columns.some(goes)) return undefined
  const columns = before.columns.map((column) =>
    goes(column) ? { ...column, notNull: false, touched: unknown } : column,
  )
  return { ...before, columns }
}

/** A column that was added and dropped again between the looks: what it held matters to nobody any more. */
function passing(number: number, { name, typeOid, typmod }: SentColumn, declared: string): ShapeColumn {
  const plain = { collation: null, notNull: false, generated: '', expression: null, needs: null }
  return { number, name, type: typeOid, typmod, declared, ...plain, missing: null, touched: unknown, gone: true }
}

/** Why rows that look like the table before may be of another one, or undefined. */
export function mistakable(relation: Relation, between: Between): string | undefined {
  const own = sentColumns(between.before).map(({ number }) => number)
  const numbers = numbersOf(relation, between)
  if (typeof numbers === 'string') return numbers
  return numbers.every((number, i) => number === own[i]) ? undefined : 'its columns are others of the same name'
}
