import type pg from 'pg'
import type { Digest } from '../../src/connector.ts'
import type { TableId } from '../../src/model.ts'
import { ident, qualified } from './queries.ts'
import type { CatalogColumn } from './schema.ts'
import { textOf } from './types.ts'

/**
 * The canonical digest (docs/digest.md) of the rows that meet a condition on `t`, in the transaction that is open. `columns`:
 * in the order of the schema both ends are compared by.
 */
export async function selectDigest(
  client: pg.ClientBase,
  table: TableId,
  columns: readonly CatalogColumn[],
  condition: string,
): Promise<Digest> {
  const version = await limitLoad(client)
  const { rows } = await client.query<{ rows: string; first: string; second: string }>(
    digestQuery(table, columns, condition, version),
  )
  const [found = { rows: '0', first: '0', second: '0' }] = rows
  return {
    rows: Number(found.rows),
    sums: [BigInt.asUintN(64, BigInt(found.first)), BigInt.asUintN(64, BigInt(found.second))],
  }
}

/** `array_send` writes text in the client's encoding, which is pinned to UTF-8. `offset 0`: each row is hashed once. */
function digestQuery(
  table: TableId,
  columns: readonly CatalogColumn[],
  condition: string,
  serverVersion: number,
): string {
  return `
    select count(*) as rows, coalesce(sum(${half(1, serverVersion)}), 0) as first, coalesce(sum(${half(9, serverVersion)}), 0) as second
      from (select ${hashOf(columns, 't')} as hash from only ${qualified(table)} t where ${condition} offset 0) h`
}

/** A row's canonical bytes, hashed (docs/digest.md). */
export function hashOf(columns: readonly CatalogColumn[], alias: string): string {
  const texts = columns.map((column) => textOf(column, `${alias}.${ident(column.name)}`)).join(', ')
  return `sha256(array_send(array[${texts}]::pg_catalog.text[]))`
}

/** Eight bytes of the hash, from this one on, as a signed number. Only from 18 on there is a cast, at a quarter of the price. */
function half(from: number, serverVersion: number): string {
  return serverVersion >= 180000
    ? `substr(hash, ${from}, 8)::int8`
    : `('x' || encode(substr(hash, ${from}, 8), 'hex'))::bit(64)::int8`
}

/**
 * For the rest of the transaction: one process at the server, however large the table, and none any more soon after we are
 * gone, where the platform can notice that while it works (a setting that others refuse). Resolves to the server's version.
 */
async function limitLoad(client: pg.ClientBase): Promise<number> {
  const { rows } = await client.query<{ version: number }>(
    `select current_setting('server_version_num')::int as version, set_config(name, value, true)
       from (values ('max_parallel_workers_per_gather', '0'), ('client_connection_check_interval', '1s')) s (name, value)
      where name <> 'client_connection_check_interval' or version() ~ 'linux'`,
  )
  return rows[0]?.version ?? 0
}
