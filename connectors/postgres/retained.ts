import { Failure } from '../../src/errors.ts'
import { comparePositions, tableName, type Position, type TableId, type TableSchema } from '../../src/model.ts'
import type { StateStore } from '../../src/coordinate/state-store.ts'
import type { Lookup, Relation } from './pgoutput.ts'
import type { PublicationRow, PublishedRow, System } from './source-queries.ts'

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
}
/** `until`: the place from which on it is taken in again; absent: it is not. */
export type Left = { readonly oid: number; readonly until?: Position }

const key = 'source/retained'
const identities = { default: 'd', nothing: 'n', full: 'f', index: 'i' } as const

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
 * Compares the publication and its tables with what was recorded. What cannot be proved harmless is PUBLICATION_CHANGED
 * or TABLE_CHANGED. `expected`: tables that may be in it beside the recorded ones.
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
    const difference = tableDifference(row, current)
    if (difference !== undefined) throw new Failure('TABLE_CHANGED', { object: tableName(row), observed: difference })
  }
  const known = new Set(recorded.relations.map((row) => row.oid))
  for (const row of now.relations) {
    if (!known.has(row.oid) && !expected.has(tableName(row))) throw changed(`table ${tableName(row)} was added to it`)
  }
}

/** In words, or undefined. A rewrite alone (VACUUM FULL, CLUSTER, and TRUNCATE, which is streamed) changes no row. */
function tableDifference(recorded: PublishedRow, now: PublishedRow): string | undefined {
  if (now.schema !== recorded.schema || now.name !== recorded.name) return `it is called ${tableName(now)} now`
  const columns = columnDifference(
    recorded.attributes.map(([number, name, , , type]) => `${name} ${type} (number ${number})`),
    now.attributes.map(([number, name, , , type]) => `${name} ${type} (number ${number})`),
  )
  if (columns !== undefined) return columns
  if (now.identity !== recorded.identity) return 'its replica identity changed'
  if (now.relfilenode !== recorded.relfilenode && now.touched !== recorded.touched) {
    return 'it was rewritten and its columns were altered'
  }
  const leaves = new Set(recorded.leaves)
  if (now.leaves.length !== leaves.size || now.leaves.some((leaf) => !leaves.has(leaf))) return 'its partitions changed'
  return undefined
}

function columnDifference(recorded: readonly string[], now: readonly string[]): string | undefined {
  const gone = recorded.filter((column) => !now.includes(column))
  const come = now.filter((column) => !recorded.includes(column))
  if (gone.length === 0 && come.length === 0) return undefined
  const parts = []
  if (gone.length > 0) parts.push(`recorded: ${gone.join(', ')}`)
  if (come.length > 0) parts.push(`found: ${come.join(', ')}`)
  return `columns differ, ${parts.join('; ')}`
}

/** Which schema the core goes by must be the table that was recorded. */
export function checkSchema(schema: TableSchema, recorded: PublishedRow): void {
  const difference = columnDifference(
    recorded.attributes.map(([, name, , , type]) => `${name} ${type}`),
    schema.columns.map(({ name, type }) => `${name} ${type}`),
  )
  if (difference !== undefined) {
    throw new Failure('TABLE_CHANGED', { object: tableName(schema.table), observed: difference })
  }
}

/** What goes with tables that are not wanted any more: they, and partitioned tables that are no longer whole without them. */
export function leaving(recorded: readonly PublishedRow[], wanted: readonly TableId[]): readonly PublishedRow[] {
  const names = new Set(wanted.map(tableName))
  const tables = recorded.filter((row) => row.kind === 'r' && !names.has(tableName(row)))
  const oids = new Set(tables.map(({ oid }) => oid))
  return [...tables, ...recorded.filter((row) => row.kind === 'p' && row.leaves.some((leaf) => oids.has(leaf)))]
}

/** Finds the schema of a table of the stream, and whether the stream sends it as it was recorded. A table that was left out is passed over, however it
 *  looked then. */
export function lookup(
  record: () => Pick<Retained, 'publication' | 'left'> | undefined,
  schemas: ReadonlyMap<string, TableSchema>,
): Lookup {
  return (relation, position) => {
    const { publication, left = [] } = record() ?? { publication: { relations: [] } }
    const gone = left.find(({ oid }) => oid === relation.oid)
    if (gone && (gone.until === undefined || comparePositions(position, gone.until) <= 0)) return undefined
    const object = tableName(relation.table)
    const changed = (observed: string): Failure => new Failure('TABLE_CHANGED', { object, observed })
    const recorded = publication.relations.find((row) => row.oid === relation.oid)
    if (!recorded) return changed('it was not recorded: a partition or table added since')
    const schema = schemas.get(tableName(recorded))
    if (!schema) return changed('its changes arrive, but it is not among the tables of this pipeline')
    const difference = relationDifference(relation, recorded, schema)
    return difference === undefined ? schema : changed(difference)
  }
}

function relationDifference(relation: Relation, recorded: PublishedRow, schema: TableSchema): string | undefined {
  const { schema: namespace, name } = relation.table
  if (namespace !== recorded.schema || name !== recorded.name) return `it was called ${tableName(recorded)}`
  if (!recorded.identity.startsWith(identities[relation.identity])) return 'its replica identity changed'
  const print = (name: string, type: number, typmod: number): string => `${name} type ${type}/${typmod}`
  const difference = columnDifference(
    recorded.attributes.map(([, name, type, typmod]) => print(name, type, typmod)),
    relation.columns.map(({ name, typeOid, typmod }) => print(name, typeOid, typmod)),
  )
  if (difference !== undefined) return difference
  const order = relation.columns.findIndex(({ name }, i) => schema.columns[i]?.name !== name)
  if (order >= 0 || relation.columns.length !== schema.columns.length) return 'its columns have another order'
  if (relation.identity === 'full' || schema.key.length === 0) return undefined
  const keyed = relation.columns.flatMap(({ key: inKey }, i) => (inKey ? [i] : []))
  return keyed.length === schema.key.length && keyed.every((i) => schema.key.includes(i))
    ? undefined
    : 'its key columns changed'
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
