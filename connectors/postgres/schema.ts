import type pg from 'pg'
import type { TableFilter } from '../../src/connector.ts'
import type { Form, TableId, TableSchema } from '../../src/model.ts'
import { mapError } from './errors.ts'
import {
  selectAttributes,
  selectRelations,
  selectTypes,
  selectUniqueIndexes,
  type IndexRow,
  type RelationRow,
} from './queries.ts'
import { formOf, isBinarySafe, keyIsBytes } from './types.ts'

/** One type as its catalog row says; `kind`: b, c, d, e, p, r or m as typtype. */
export type CatalogType = {
  readonly oid: number
  readonly schema: string
  readonly name: string
  readonly kind: string
  /** Of a domain, with the modifier it declares; 0 and -1 otherwise. */
  readonly base: number
  readonly typmod: number
  /** Of an array; 0 otherwise. */
  readonly element: number
  readonly isArray: boolean
  /** Has a binary form in both directions. */
  readonly sends: boolean
  /** Functions that read and print it, quoted; `output` is null where it is declared for another type (a refcursor is printed as text). */
  readonly input: { readonly name: string; readonly arguments: number }
  readonly output: string | null
  /** Which of text, varchar and bpchar a function casts to it. */
  readonly textCasts: readonly string[]
  /** A cast to text is declared for it; without one the server casts by the output function. */
  readonly castToText: boolean
}
type Collation = {
  readonly name: string
  /** c libc, i ICU, b built in, d default. */
  readonly provider: string
  readonly deterministic: boolean
  /** What the server's library says now. */
  readonly version: string | undefined
}
export type CatalogColumn = {
  readonly name: string
  readonly attnum: number
  readonly typeOid: number
  readonly typmod: number
  /** As declared, user types with their schema. */
  readonly type: string
  /** For casts of values: through domains, without any length, so that a value too long is refused and not cut. */
  readonly castType: string
  readonly form: Form
  readonly notNull: boolean
  /** Stored or virtual: in no image. */
  readonly generated: false | 'stored' | 'virtual'
  readonly identity: false | 'always' | 'default'
  /** What rows older than the column hold in it, as the catalog prints it. */
  readonly missing: string | undefined
  /** Of a generated column: its expression. */
  readonly default: string | undefined
  /** Through domains. */
  readonly base: CatalogType
  readonly baseTypmod: number
  /** The binary form means the same at any other server. */
  readonly binary: boolean
  readonly collation: Collation | undefined
}
type CatalogKey = {
  readonly index: string
  /** Attribute numbers in key order. */
  readonly columns: readonly number[]
  readonly deferrable: boolean
}
export type CatalogTable = {
  readonly table: TableId
  readonly oid: number
  readonly relfilenode: number
  /** r, or p of a partitioned parent, which has no rows of its own. */
  readonly kind: 'r' | 'p'
  readonly isPartition: boolean
  /** From the root down; the table itself is not among them. */
  readonly ancestors: readonly TableId[]
  /** Of plain inheritance. */
  readonly parents: readonly TableId[]
  readonly replicaIdentity: 'default' | 'index' | 'full' | 'nothing'
  readonly rls: { readonly enabled: boolean; readonly forced: boolean }
  readonly columns: readonly CatalogColumn[]
  readonly primaryKey: CatalogKey | undefined
  readonly identityIndex: CatalogKey | undefined
  /** Attribute numbers of the key changes are identified by; empty: none (no key, a deferrable one, one with a generated column). */
  readonly key: readonly number[]
  /** A unique or exclusion index that the key does not imply. */
  readonly uniqueBeside: boolean
  readonly estimatedRows: number
}
/** A table that the filter names and that is not captured, with the reason. */
type LeftOut = { readonly table: TableId; readonly reason: string; readonly unlogged: boolean }

const identities: Readonly<Record<string, CatalogTable['replicaIdentity']>> = {
  d: 'default',
  i: 'index',
  f: 'full',
  n: 'nothing',
}

/**
 * Tables with rows of their own that the filter names: plain ones and leaf partitions, ordered by schema and name. A leaf
 * is asked for with the partitioned tables above it. Not in: catalogs, schema crossfade,
 * temporary, unlogged, foreign and extensions' tables, and those without a column to copy (`readLeftOut` names those).
 */
export async function readCatalog(client: pg.ClientBase, filter: TableFilter): Promise<readonly CatalogTable[]> {
  try {
    const relations = await selectRelations(client)
    return await describe(
      client,
      relations.filter((row) => row.relkind === 'r' && leftOutBecause(row) === undefined && isNamed(row, filter)),
    )
  } catch (error) {
    throw mapError(error)
  }
}

/** One of them alone: whoever has locked another is not waited for. */
export async function readCatalogOf(client: pg.ClientBase, table: TableId): Promise<readonly CatalogTable[]> {
  try {
    const relations = await selectRelations(client, table)
    return await describe(
      client,
      relations.filter((row) => row.relkind === 'r' && leftOutBecause(row) === undefined),
    )
  } catch (error) {
    throw mapError(error)
  }
}

/** The partitioned tables above these leaves, parents before children. */
export async function readPartitioned(
  client: pg.ClientBase,
  leaves: readonly CatalogTable[],
): Promise<readonly CatalogTable[]> {
  const names = new Set(
    leaves.flatMap((leaf) => leaf.ancestors.map((table) => JSON.stringify([table.schema, table.name]))),
  )
  if (names.size === 0) return []
  const relations = await selectRelations(client)
  const roots = relations.filter((row) => row.relkind === 'p' && names.has(JSON.stringify([row.schema, row.name])))
  return (await describe(client, roots)).toSorted((a, b) => a.ancestors.length - b.ancestors.length)
}

export async function readLeftOut(client: pg.ClientBase, filter: TableFilter): Promise<readonly LeftOut[]> {
  const relations = await selectRelations(client)
  return relations.flatMap((row) => {
    const reason = leftOutBecause(row)
    return reason === undefined || !isNamed(row, filter)
      ? []
      : [{ table: { schema: row.schema, name: row.name }, reason, unlogged: row.relpersistence === 'u' }]
  })
}

function leftOutBecause(row: RelationRow): string | undefined {
  if (row.relkind === 'f') return 'a foreign table: its rows are not in this database'
  if (row.relpersistence === 't') return 'a temporary table'
  if (row.relpersistence === 'u') return 'an unlogged table: its changes are not in the write-ahead log'
  if (row.extension !== null) return `a table of extension ${row.extension}`
  if (!row.filled) return 'a table without columns, or with generated ones alone: a row of it holds nothing'
  return undefined
}

function isNamed(row: RelationRow, filter: TableFilter): boolean {
  return filter({ schema: row.schema, name: row.name }, row.ancestors ?? [])
}

async function describe(client: pg.ClientBase, relations: readonly RelationRow[]): Promise<readonly CatalogTable[]> {
  const oids = relations.map((row) => row.oid)
  if (oids.length === 0) return []
  const types = new Map((await selectTypes(client, oids)).map((type) => [type.oid, type]))
  const columns = new Map<number, CatalogColumn[]>(oids.map((oid) => [oid, []]))
  for (const row of await selectAttributes(client, oids)) {
    const type = types.get(row.atttypid)
    if (!type) throw new RangeError(`type ${row.atttypid} is not in the catalog`)
    const { base, typmod } = through(type, row.atttypmod, types)
    columns.get(row.attrelid)?.push({
      name: row.attname,
      attnum: row.attnum,
      typeOid: row.atttypid,
      typmod: row.atttypmod,
      type: row.type,
      castType: row.cast_type,
      form: formOf(row.atttypid),
      notNull: row.attnotnull,
      generated: row.attgenerated === 's' ? 'stored' : row.attgenerated === 'v' ? 'virtual' : false,
      identity: row.attidentity === 'a' ? 'always' : row.attidentity === 'd' ? 'default' : false,
      missing: row.missing ?? undefined,
      default: row.default ?? undefined,
      base,
      baseTypmod: typmod,
      binary: isBinarySafe(type, (oid) => types.get(oid)),
      collation:
        row.collation === null
          ? undefined
          : {
              name: row.collation,
              provider: row.provider ?? '',
              deterministic: row.deterministic !== false,
              version: row.version ?? undefined,
            },
    })
  }
  const indexes = Map.groupBy(await selectUniqueIndexes(client, oids), (row) => row.indrelid)
  return relations.map((row) => describeTable(row, columns.get(row.oid) ?? [], indexes.get(row.oid) ?? []))
}

function describeTable(
  row: RelationRow,
  columns: readonly CatalogColumn[],
  indexes: readonly IndexRow[],
): CatalogTable {
  const replicaIdentity = identities[row.relreplident] ?? 'nothing'
  const primary = indexes.find((index) => index.indisprimary)
  const identity = indexes.find((index) => index.indisreplident)
  // What the log carries as the old key is the identity index's columns: with another key a delete could not be read.
  const chosen = replicaIdentity === 'index' ? identity : primary
  const generated = new Set(columns.filter((column) => column.generated).map((column) => column.attnum))
  const usable = chosen?.indimmediate && chosen.plain && !chosen.columns.some((attnum) => generated.has(attnum))
  const key = usable ? chosen.columns : []
  return {
    table: { schema: row.schema, name: row.name },
    oid: row.oid,
    relfilenode: row.relfilenode,
    kind: row.relkind === 'p' ? 'p' : 'r',
    isPartition: row.relispartition,
    ancestors: row.ancestors ?? [],
    parents: row.parents ?? [],
    replicaIdentity,
    rls: { enabled: row.relrowsecurity, forced: row.relforcerowsecurity },
    columns,
    primaryKey: primary && keyOf(primary),
    identityIndex: identity && keyOf(identity),
    key,
    uniqueBeside: indexes.some((index) => !isImplied(index, key)),
    estimatedRows: row.rows,
  }
}

/** A unique index over the key and more holds wherever the key does. */
export function isImplied(index: IndexRow, key: readonly number[]): boolean {
  return index.plain && key.length > 0 && key.every((attnum) => index.columns.includes(attnum))
}

function keyOf(index: IndexRow): CatalogKey {
  return { index: index.name, columns: index.columns, deferrable: !index.indimmediate }
}

function through(
  type: CatalogType,
  typmod: number,
  types: ReadonlyMap<number, CatalogType>,
): { base: CatalogType; typmod: number } {
  if (type.kind !== 'd') return { base: type, typmod }
  const base = types.get(type.base)
  return base ? through(base, type.typmod, types) : { base: type, typmod }
}

/** The table as the core sees it: columns in attribute order without generated ones, as the replication stream sends them. */
export function tableSchema(table: CatalogTable, version: number): TableSchema {
  const columns = table.columns.filter((column) => !column.generated)
  const key = table.key.map((attnum) => columns.findIndex((column) => column.attnum === attnum))
  return {
    table: table.table,
    version,
    columns: columns.map(({ name, type, form, notNull }) => ({ name, type, form, nullable: !notNull })),
    key,
    before: table.replicaIdentity === 'full' ? 'row' : 'key',
    shape: 'columns',
    pinned:
      key.length === 0 ||
      table.uniqueBeside ||
      !columns.every((column) => !table.key.includes(column.attnum) || keyIsBytes(column)),
  }
}
