import type pg from 'pg'
import type { Finding } from '../../src/connector.ts'
import { tableName } from '../../src/model.ts'
import { selectHopeless } from './check-queries.ts'
import { ident, qualified } from './queries.ts'
import type { CatalogTable } from './schema.ts'

/** Types that hold values and read none: pg_node_tree, gtsvector, pg_ndistinct, pg_dependencies, summaries of BRIN, pg_mcv_list. */
const unreadable: readonly number[] = [194, 3642, 3361, 3402, 4600, 4601, 5017]

/** A blocker for each column whose values no server takes back, or not every one alike. */
export async function checkTypes(client: pg.ClientBase, tables: readonly CatalogTable[]): Promise<readonly Finding[]> {
  const byOid = new Map(tables.map((table) => [table.oid, table.table]))
  const found: Finding[] = []
  for (const { table: oid, column, type, row } of await selectHopeless(client, [...byOid.keys()], unreadable)) {
    const table = byOid.get(oid)
    if (!table) continue
    found.push({
      id: 'source.type',
      level: 'blocker',
      observed: row
        ? `${tableName(table)}.${column} holds rows of ${type}, which each version of the server lays out otherwise`
        : `${tableName(table)}.${column} holds ${type}, of which a server reads no value`,
      needed: 'a type whose values can be written',
      remedy: `ALTER TABLE ${qualified(table)} ALTER COLUMN ${ident(column)} TYPE text USING ${ident(column)}::text; -- or exclude the table`,
    })
  }
  return found
}
