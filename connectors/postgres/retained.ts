import { isDeepStrictEqual } from 'node:util'
import { Failure } from '../../src/errors.ts'
import { origin, tableName, type TableId, type TableSchema } from '../../src/model.ts'
import type { StateStore } from '../../src/coordinate/state-store.ts'
import { keyInCatalog, keyOf, sentColumns } from './shape.ts'
import type { PublicationRow, PublishedRow, Shape, System } from './source-queries.ts'
import { changesBetween } from './changes-between.ts'
import { unfollowable } from './unfollowable.ts'
import { changed, withShapes, type Left, type Version } from './version.ts'

/** What the source must recognise after a restart. `making`: nothing was handed out yet, so what there is may be made again. */
export type Retained = System & {
  readonly state: 'making' | 'made' | 'released'
  /** Place from which the slot kept everything, 16 hex digits. */
  readonly consistentPoint: string
  readonly publication: PublicationRow
  /** Tables that are being added to it or taken out: there or not. */
  readonly adding: readonly string[]
  /** Tables that were left out. */
  readonly left?: readonly Left[]
  /** Of each table without rows of others: as it was at the beginning, and after each change. */
  readonly versions: readonly Version[]
}

const key = 'source/retained'

type Stored = { readonly retained: Retained | undefined; readonly revision: number }
export async function loadRetained(state: StateStore, signal: AbortSignal): Promise<Stored> {
  const stored = await state.get(key, signal)
  const retained = stored?.value as Retained | undefined
  return { retained: retained?.state === 'released' ? undefined : retained, revision: stored?.revision ?? 0 }
}
/** Over the revision that was loaded; FENCED if somebody wrote since. Resolves to the new revision. */
export async function saveRetained(
  state: StateStore,
  retained: Retained,
  revision: number,
  signal: AbortSignal,
): Promise<number> {
  const next = await state.put(key, retained, revision, signal)
  if (next === undefined) throw new Failure('FENCED', { object: key, observed: 'another worker wrote it' })
  return next
}

/**
 * Compares the publication with what was recorded. What cannot be proved harmless is PUBLICATION_CHANGED. `expected`:
 * tables that may be in it beside the recorded ones.
 */
export function checkPublication(
  name: string,
  recorded: PublicationRow,
  now: PublicationRow | undefined,
  expected: ReadonlySet<string>,
): void {
  const object = `publication ${name}`
  const changed = (observed: string): Failure => new Failure('PUBLICATION_CHANGED', { object, observed })
  const gap = (observed: string): Failure =>
    new Failure('PUBLICATION_CHANGED', {
      object,
      observed,
      effect: 'What was written in between may not have been sent',
      next: 'Start a new pipeline: only a new copy can tell',
    })
  if (!now) throw changed('it was dropped')
  if (now.oid !== recorded.oid) throw changed('it was dropped and created again')
  if (now.options !== recorded.options)
    throw changed(`its options are ${now.options}, recorded were ${recorded.options}`)
  if (now.version !== recorded.version) throw gap('it was altered, and altered back')
  const found = new Map(now.relations.map((row) => [row.oid, row]))
  for (const row of recorded.relations) {
    const current = found.get(row.oid)
    if (!current) throw changed(`table ${tableName(row)} is no longer in it`)
    if (current.entry !== row.entry) throw gap(`table ${tableName(row)} was taken out of it, and put back`)
    if (current.filtered) throw changed(`table ${tableName(row)} has a row filter or a list of columns`)
  }
  const known = new Set(recorded.relations.map((row) => row.oid))
  for (const row of now.relations) {
    if (!known.has(row.oid) && !expected.has(tableName(row))) throw changed(`table ${tableName(row)} was added to it`)
  }
}

/** Compares tables whose rows in the publication differ from the record: TABLE_CHANGED for what no stream of rows shows. Resolves to the record with
 *  what changes no row taken over; a change that the stream will come to stays as it was recorded. */
export function checkTables(recorded: Retained, publication: PublicationRow, looked: readonly Shape[]): Retained {
  const shapes = new Map(looked.map((shape) => [shape.oid, shape]))
  const newest = new Map(recorded.versions.map((version) => [version.oid, version]))
  const pending = new Set<number>()
  const rewritten: Shape[] = []
  for (const [oid, version] of newest) {
    const shape = shapes.get(oid)
    if (shape === undefined) continue
    const why = unfollowable(version.shape, shape, keyOf(version.schema, version.shape))
    if (why !== undefined) throw changed(version, why, shape)
    if (changesBetween(version.shape, shape).length > 0) pending.add(oid)
    // Whatever else was touched may be in rows that are still to be read: it is taken over when they are.
    else if (isDeepStrictEqual([version.shape.columns, version.shape.dropped], [shape.columns, shape.dropped]))
      rewritten.push(shape)
  }
  const before = new Map(recorded.publication.relations.map((row) => [row.oid, row]))
  for (const row of publication.relations) {
    const known = before.get(row.oid)
    if (known === undefined || newest.has(row.oid)) continue
    const moved = known.leaves.length !== row.leaves.length || known.leaves.some((leaf) => !row.leaves.includes(leaf))
    if (moved) throw membershipChanged(row)
  }
  const relations = publication.relations.map((row) => (pending.has(row.oid) ? (before.get(row.oid) ?? row) : row))
  const versions = withShapes(recorded.versions, rewritten)
  return { ...recorded, publication: { ...publication, relations }, versions }
}

/** What goes with tables that are not wanted any more: they, and partitioned tables that are no longer whole without them. */
export function leaving(recorded: readonly PublishedRow[], wanted: readonly TableId[]): readonly PublishedRow[] {
  const names = new Set(wanted.map(tableName))
  const tables = recorded.filter((row) => row.kind === 'r' && !names.has(tableName(row)))
  const oids = new Set(tables.map(({ oid }) => oid))
  return [...tables, ...recorded.filter((row) => row.kind === 'p' && row.leaves.some((leaf) => oids.has(leaf)))]
}

/** A table as it is left out. Also a former time counts: its changes may still be sent again. */
export function leftOut({ left = [], versions }: Retained, oid: number): Left {
  const former = left.find((one) => one.oid === oid)?.marks ?? []
  const own = versions.filter((version) => version.oid === oid).slice(1)
  return { oid, marks: [...former, ...own.map(({ from }) => from)] }
}

function membershipChanged(row: PublishedRow): Failure {
  return new Failure('TABLE_CHANGED', {
    object: tableName(row),
    observed: 'its partitions changed',
    needed: 'the partitions it had when it was recorded',
    effect: 'nothing is captured any more: rows of a partition nobody recorded would be missing',
    next: 'Undo the change (detach what was attached, attach what was detached), or name the table under tables.exclude, and start again',
  })
}

/** The first version of each of these tables that has none. TABLE_CHANGED if the catalog no longer shows what the core goes by. */
export function firstVersions(
  known: readonly Version[],
  schemas: readonly TableSchema[],
  looked: readonly Shape[],
): readonly Version[] {
  const there = new Set(known.map(({ oid }) => oid))
  const byName = new Map(looked.map((shape) => [tableName(shape), shape]))
  const fresh = schemas.flatMap((schema): Version[] => {
    const shape = byName.get(tableName(schema.table))
    if (shape === undefined || there.has(shape.oid)) return []
    checkSchema(schema, shape)
    return [{ oid: shape.oid, from: { position: origin, seq: 0 }, schema, shape, changes: [] }]
  })
  return [...known, ...fresh]
}

/** Looks from before and behind the place where the stream begins: a column that became another one of its name in between would be taken for it. */
export function demandSame(before: readonly Shape[], now: readonly Shape[]): void {
  const later = new Map(now.map((shape) => [shape.oid, shape]))
  for (const shape of before) {
    const after = later.get(shape.oid)
    if (after === undefined) continue
    if (!isDeepStrictEqual(after.columns, shape.columns)) throw unsteady(shape, 'its columns changed a moment ago')
    if (after.identity !== shape.identity) throw unsteady(shape, 'its replica identity or key changed a moment ago')
  }
}

/** Which schema the core goes by must be the table that was found. */
function checkSchema(schema: TableSchema, shape: Shape): void {
  const print = (columns: readonly { readonly name: string; readonly type: string }[]): string =>
    columns.map(({ name, type }) => `${name} ${type}`).join(', ')
  const found = print(sentColumns(shape).map(({ name, declared }) => ({ name, type: declared })))
  const expected = print(schema.columns)
  if (found !== expected) throw unsteady(schema.table, `it has ${found}, and had ${expected} a moment ago`)
  // A delete carries the cells of the source's key alone: with another one it would find no row.
  if (!isDeepStrictEqual(keyOf(schema, shape), keyInCatalog(shape)))
    throw unsteady(schema.table, 'its key changed a moment ago')
  if ((schema.before === 'row') !== shape.identity.startsWith('f'))
    throw unsteady(schema.table, 'its replica identity changed a moment ago')
}

function unsteady(table: TableId, observed: string): Failure {
  return new Failure('TABLE_CHANGED', {
    object: tableName(table),
    observed,
    needed: 'a definition that stays while the pipeline begins',
    effect: 'nothing was started',
    next: 'Start again',
  })
}

/** Whether a publication that the operator made for us can serve: every kind of change of each table, whole, and of no other but a root of theirs. */
export function serves(
  publication: PublicationRow,
  tables: readonly TableId[],
  withRoots: readonly TableId[],
): boolean {
  const all = ['"puballtables": false', '"pubviaroot": false']
  const kinds = ['insert', 'update', 'delete', 'truncate'].map((kind) => `"pub${kind}": true`)
  if (![...all, ...kinds].every((option) => publication.options.includes(option))) return false
  // Whole schemas beside the tables: whatever is created there would be in it.
  if (!publication.options.endsWith('}0')) return false
  const allowed = new Set(withRoots.map(tableName))
  const there = new Set(publication.relations.map(tableName))
  return (
    publication.relations.every((row) => !row.filtered && allowed.has(tableName(row))) &&
    tables.every((table) => there.has(tableName(table)))
  )
}

/** The tables, and partitioned tables all of whose leaves are among them: a partition added later is then noticed. */
export function withRoots(
  tables: readonly TableId[],
  roots: readonly { readonly schema: string; readonly name: string; readonly leaves: readonly TableId[] }[],
): readonly TableId[] {
  const names = new Set(tables.map(tableName))
  const whole = roots.filter((root) => root.leaves.every((leaf) => names.has(tableName(leaf))))
  return [...tables, ...whole.map(({ schema, name }) => ({ schema, name }))]
}
