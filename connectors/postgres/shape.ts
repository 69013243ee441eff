import { tableName, type TableChange, type TableSchema } from '../../src/model.ts'
import type { Relation } from './pgoutput.ts'
import type { PublishedRow, Shape, ShapeColumn } from './source-queries.ts'
import { formOf } from './types.ts'

/** Columns as a Relation message has them. */
export function sentColumns(shape: Pick<Shape, 'columns'>): readonly ShapeColumn[] {
  return shape.columns.filter(({ generated }) => generated === '')
}

const letters = { default: 'd', nothing: 'n', full: 'f', index: 'i' } as const

/** Whether the stream sends the table as it is recorded here; in words what is not so. */
export function relationDifference(relation: Relation, shape: Shape): string | undefined {
  if (!shape.identity.startsWith(letters[relation.identity])) return 'its replica identity changed'
  const columns = sentColumns(shape)
  const same = columns.every((column, i) => isSame(column, relation.columns[i]))
  if (!same || columns.length !== relation.columns.length) return 'other columns'
  if (relation.identity !== 'default' && relation.identity !== 'index') return undefined
  const key = keyNumbers(shape)
  const sent = relation.columns.flatMap(({ key }, i) => (key ? [columns[i]?.number ?? 0] : []))
  return sent.length === key.length && sent.every((number) => key.includes(number))
    ? undefined
    : 'its key columns changed'
}

function isSame(column: ShapeColumn, sent: Relation['columns'][number] | undefined): boolean {
  return column.name === sent?.name && column.type === sent.typeOid && column.typmod === sent.typmod
}

function keyNumbers({ identity }: Shape): readonly number[] {
  return (identity.slice(2).match(/\d+/g) ?? []).map(Number)
}

/** In place of a transaction, where a column was touched nobody knows when. */
const unknown = ''
/** A row's transaction, the look at the catalog before it, and one after. */
export type Between = { readonly before: Shape; readonly now: Shape; readonly xid: number }

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

function attributesOf(columns: readonly ShapeColumn[]): PublishedRow['attributes'] {
  return sentColumns({ columns }).map(({ number, name, type, typmod, declared }) => [
    number,
    name,
    type,
    typmod,
    declared,
  ])
}

export type SentColumn = Relation['columns'][number]
type Place = {
  readonly number: number
  /** At both looks, so at every moment between them. */
  readonly stays: boolean
  /** Came after the first look. */
  readonly added: boolean
  /** There at the second look: whatever is added after it stands beside it. */
  readonly alive: boolean
  /** Definitions it has had at the looks; not all if it was touched between them. */
  readonly known: readonly ShapeColumn[]
  readonly untouched: boolean
  /** The transaction that brought it, or took it away. */
  readonly by: number
}

/** Which columns a Relation message is about: they keep their numbers for ever, and stand in their order. Where that leaves more than one reading, names,
 *  types and the order of transactions must agree on one. */
function numbersOf(relation: Relation, { before, now, xid }: Between): readonly number[] | string {
  const places = placesOf(before, now)
  const possible = ({ untouched, known }: Place, sent: SentColumn): boolean =>
    !untouched || known.some((column) => isSame(column, sent))
  const proved = assign(relation.columns, places, possible, ({ stays }) => !stays)
  if (proved.ways === 0) return 'its columns were changed several times'
  if (proved.ways === 1) return proved.numbers
  const since = ({ by }: Place): number => (by - xid) | 0
  const likely =
    (typed: boolean) =>
    (place: Place, sent: SentColumn): boolean => {
      const { known, alive } = place
      if (!possible(place, sent) || (!alive && since(place) < 0)) return false
      if (known.length === 0) return true
      const named = known.some(({ name }) => name === sent.name)
      return named && (!typed || known.some(({ type, typmod }) => type === sent.typeOid && typmod === sent.typmod))
    }
  const absent = (place: Place): boolean => {
    if (place.stays) return false
    if (!place.added) return since(place) <= 0
    return !place.alive || since(place) >= 0
  }
  // A column may have had a third type in between: types decide only where names do not.
  let agreed = assign(relation.columns, places, likely(false), absent)
  if (agreed.ways > 1) agreed = assign(relation.columns, places, likely(true), absent)
  return agreed.ways === 1 ? agreed.numbers : 'its columns can be told apart in more than one way'
}

function placesOf(before: Shape, now: Shape): readonly Place[] {
  const older = byNumber(before)
  const newer = byNumber(now)
  const gone = new Set(before.dropped.map(({ number }) => number))
  const dropped = new Map(now.dropped.map(({ number, touched }) => [number, touched]))
  const numbers = new Set([...older.keys(), ...newer.keys(), ...dropped.keys()])
  return [...numbers]
    .filter((number) => !gone.has(number))
    .toSorted((a, b) => a - b)
    .flatMap((number): Place[] => {
      const [old, fresh] = [older.get(number), newer.get(number)]
      const known = [old, fresh].filter((column) => column?.generated === '') as ShapeColumn[]
      // A computed column is never sent.
      if (known.length === 0 && (old !== undefined || fresh !== undefined)) return []
      const stays = known.length === 2
      const untouched = stays && old?.touched === fresh?.touched
      const by = Number(fresh?.touched ?? dropped.get(number) ?? 0) | 0
      return [{ number, stays, added: old === undefined, alive: fresh !== undefined, known, untouched, by }]
    })
}

/** The numbers of the columns sent, in rising order, and whether there are none, one or two and more ways. */
function assign(
  sent: readonly SentColumn[],
  places: readonly Place[],
  may: (place: Place, sent: SentColumn) => boolean,
  absent: (place: Place) => boolean,
): { readonly ways: number; readonly numbers: readonly number[] } {
  // Of the columns from i on to the places from j on; after one that came and stayed was left out, none that came later can be there.
  const width = places.length + 1
  const ways = new Uint8Array(2 * (sent.length + 1) * width)
  const slot = (i: number, j: number, left: number): number => 2 * (i * width + j) + left
  const step = (i: number, j: number, left: number): { readonly take: number; readonly skip: number } => {
    const place = places[j]
    const column = sent[i]
    if (place === undefined) return { take: 0, skip: 0 }
    const free = column !== undefined && !(place.added && left === 1) && may(place, column)
    const leaves = place.added && place.alive ? 1 : left
    return {
      take: free ? (ways[slot(i + 1, j + 1, left)] ?? 0) : 0,
      skip: !absent(place) ? 0 : (ways[slot(i, j + 1, leaves)] ?? 0),
    }
  }
  for (const left of [0, 1]) ways[slot(sent.length, places.length, left)] = 1
  for (let i = sent.length; i >= 0; i--)
    for (let j = places.length - 1; j >= 0; j--)
      for (const left of [0, 1]) {
        const { take, skip } = step(i, j, left)
        ways[slot(i, j, left)] = Math.min(2, take + skip)
      }
  const numbers: number[] = []
  for (let i = 0, j = 0, left = 0; j < places.length && numbers.length < sent.length; j++) {
    const place = places[j]
    if (step(i, j, left).take > 0) {
      numbers.push(place?.number ?? 0)
      i++
    } else if (place?.added === true && place.alive) left = 1
  }
  return { ways: ways[slot(0, 0, 0)] ?? 0, numbers }
}

/** Why nothing can be followed any more: what a stream of rows does not show, or shows too late. In words, or undefined. `key`: numbers of its columns. */
export function unfollowable(before: Shape, now: Shape, key: readonly number[]): string | undefined {
  if (now.schema !== before.schema || now.name !== before.name) return `it is called ${tableName(now)} now`
  if (now.kind === 'p') return membership(before, now)
  if (now.identity !== before.identity) return 'its replica identity or key changed'
  const other = lookalike(before, now) ?? exchanged(before, now)
  if (other !== undefined) return other
  const rewritten = now.relfilenode !== before.relfilenode
  const newer = byNumber(now)
  for (const old of before.columns) {
    const column = newer.get(old.number)
    if (column === undefined) {
      if (key.includes(old.number)) return `column ${old.name} of its key was dropped`
      continue
    }
    if (column.generated !== old.generated) return `column ${old.name} is generated at one time, and not at another`
    if (old.generated !== '' && column.expression !== old.expression && column.declared === old.declared)
      if (column.touched !== old.touched) return `the expression of column ${old.name} changed`
    // What was seen in the stream explains as much.
    const altered = old.touched !== unknown && column.touched !== old.touched
    if (rewritten && altered && column.generated === '' && !isExplained(old, column))
      return `its rows were rewritten, and column ${old.name} altered`
    if (key.includes(old.number) && isRetyped(old, column) && !isWidened(old, column))
      return `the type of its key column ${old.name} changed`
  }
  return undefined
}

/** A table that the stream sends as before, and whose columns are others. */
function lookalike(before: Shape, now: Shape): string | undefined {
  const [former, columns] = [sentColumns(before), sentColumns(now)]
  if (former.length !== columns.length) return undefined
  const alike = columns.every(({ name, type, typmod }, i) => {
    const old = former[i]
    return old !== undefined && isSame(old, { name, typeOid: type, typmod, key: false })
  })
  const other = columns.find(({ number }, i) => number !== former[i]?.number)
  return alike && other ? `column ${other.name} is another one now: dropped, and added again` : undefined
}

/** Columns that took each other's names: afterwards a table by hand looks as before, so nobody could tell whether it was done there. */
function exchanged(before: Shape, now: Shape): string | undefined {
  const names = new Set(now.columns.map(({ name }) => name))
  const other = renames(before, now).find(({ to }) => !names.has(to))
  return (
    other &&
    `column ${other.column} took the name of another that took its name, without a step that could be followed in between`
  )
}

/** A reason for a column's definition to be touched that changes no value: the rest is a rewrite of the values in place. */
function isExplained(old: ShapeColumn, now: ShapeColumn): boolean {
  return isRetyped(old, now) || old.name !== now.name || old.notNull !== now.notNull || old.missing !== now.missing
}

function membership(before: Shape, now: Shape): string | undefined {
  const leaves = new Set(before.leaves)
  return now.leaves.length !== leaves.size || now.leaves.some((leaf) => !leaves.has(leaf))
    ? 'its partitions changed'
    : undefined
}

/** Numbers of the columns of the schema's key. */
export function keyOf(schema: TableSchema, shape: Shape): readonly number[] {
  const columns = sentColumns(shape)
  return schema.key.map((index) => columns[index]?.number ?? 0)
}

type Rename = Extract<TableChange, { kind: 'rename' }>
/** A name is taken after it was left; where each waits for another, one goes by way of a name that no column has. */
function renames(before: Shape, after: Shape): readonly Rename[] {
  const older = byNumber(before)
  const names = new Set([...before.columns, ...after.columns].map(({ name }) => name))
  const waiting = after.columns.flatMap(({ number, name: to }): Rename[] => {
    const column = older.get(number)?.name
    return column === undefined || column === to ? [] : [{ kind: 'rename', column, to }]
  })
  const ordered: Rename[] = []
  while (waiting.length > 0) {
    const next = waiting.findIndex(({ to }) => !waiting.some(({ column }) => column === to))
    const [rename] = waiting.splice(Math.max(0, next), 1)
    if (rename === undefined) break
    let passage = `${rename.column}_`
    while (names.has(passage)) passage += '_'
    if (next < 0) waiting.push({ ...rename, column: passage })
    ordered.push(next < 0 ? { ...rename, to: passage } : rename)
  }
  return ordered
}

/** The way from one shape to another by steps in each of which no name is freed and added anew, so that its columns at the target tell whether it was made. */
export function stepsBetween(before: Shape, after: Shape): readonly Shape[] {
  const older = byNumber(before)
  const names = new Set(before.columns.map(({ name }) => name))
  const kept = after.columns.filter(({ number }) => older.has(number))
  const again = after.columns.some(({ number, name }) => !older.has(number) && names.has(name))
  return again ? [{ ...after, columns: kept, attributes: attributesOf(kept) }, after] : [after]
}

/** What was done to a table, in an order in which it can be done again. The two are of one table, and `unfollowable` found nothing. `rewritten`: its rows
 *  may have been written anew meanwhile. */
export function changesBetween(
  before: Shape,
  after: Shape,
  rewritten: boolean = after.relfilenode !== before.relfilenode,
): readonly TableChange[] {
  const older = byNumber(before)
  const newer = byNumber(after)
  const drops = before.columns.filter(({ number }) => !newer.has(number))
  const changes: TableChange[] = drops
    // What is computed of a column goes before it.
    .toSorted((a, b) => b.generated.length - a.generated.length)
    .map(({ name }) => ({ kind: 'drop', column: name }))
  changes.push(...renames(before, after))
  for (const column of after.columns) {
    const old = older.get(column.number)
    if (!old || !isRetyped(old, column)) continue
    const proved = old.generated === '' && isWidened(old, column) && (isRewriting(old) || !rewritten)
    changes.push({ kind: 'retype', column: column.name, from: typeText(old), type: typeText(column), proved })
  }
  const added = after.columns.filter(({ number }) => !older.has(number))
  for (const { name: column, declared: type, collation, missing, expression, needs, generated, gone } of added) {
    if (generated !== '') continue
    changes.push({
      kind: 'add',
      column,
      type,
      ...(collation === null ? {} : { collation }),
      ...(missing === null ? {} : { value: missing }),
      ...(expression === null || needs !== null ? {} : { default: expression }),
      proved: gone === true || missing !== null || !rewritten,
    })
  }
  for (const { name: column, declared: type, collation, expression, needs, generated } of added) {
    if (generated === '') continue
    const collated = collation === null ? {} : { collation }
    const stored = generated === 's'
    changes.push({
      kind: 'compute',
      column,
      type,
      ...collated,
      expression: expression ?? 'NULL',
      stored,
      proved: needs === null,
    })
  }
  for (const { number, name, notNull, generated } of after.columns) {
    const was = older.get(number)?.notNull ?? false
    if (was !== notNull && generated === '') changes.push({ kind: 'nullable', column: name, nullable: !notNull })
  }
  return changes
}

/** The schema after the changes; what only the first look decided (pinning, old rows) stays. */
export function nextSchema(schema: TableSchema, before: Shape, after: Shape): TableSchema {
  const former = sentColumns(before)
  const columns = sentColumns(after)
  const key = schema.key.map((index) => columns.findIndex(({ number }) => number === former[index]?.number))
  return {
    ...schema,
    version: schema.version + 1,
    columns: columns.map(({ name, declared, type, notNull }) => ({
      name,
      type: declared,
      form: formOf(type),
      nullable: !notNull,
    })),
    key,
  }
}

function byNumber({ columns }: Pick<Shape, 'columns'>): ReadonlyMap<number, ShapeColumn> {
  return new Map(columns.map((column) => [column.number, column]))
}

function typeText({ declared, collation }: ShapeColumn): string {
  return collation === null ? declared : `${declared} collate ${collation}`
}

function isRetyped(old: ShapeColumn, now: ShapeColumn): boolean {
  return old.type !== now.type || old.typmod !== now.typmod || old.collation !== now.collation
}

const integers = [21, 23, 20]
const floats = [700, 701]
const numeric = 1700
const varchar = 1043
const text = 25
/** Every value reads the same under the new type. That a USING clause changed the values can be told only where the plain change writes no row anew. */
function isWidened(old: ShapeColumn, now: ShapeColumn): boolean {
  if (old.collation !== now.collation) return false
  for (const family of [integers, floats]) {
    const from = family.indexOf(old.type)
    if (from >= 0) return family.indexOf(now.type) > from
  }
  if (old.type === numeric && now.type === numeric && old.typmod >= 0 && now.typmod >= 0) {
    const [from, to] = [old.typmod - 4, now.typmod - 4]
    return (from & 0xffff) === (to & 0xffff) && to >> 16 > from >> 16
  }
  if (old.type === varchar && now.type === varchar)
    return now.typmod < 0 || (old.typmod >= 0 && now.typmod > old.typmod)
  return (old.type === varchar && now.type === text) || (old.type === text && now.type === varchar && now.typmod < 0)
}

function isRewriting({ type }: ShapeColumn): boolean {
  return integers.includes(type) || floats.includes(type)
}
