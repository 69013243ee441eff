import { silent } from '../../../src/logger.ts'
import type { TableSchema } from '../../../src/model.ts'
import { parse } from '../../../connectors/postgres/config.ts'
import { ident, qualified } from '../../../connectors/postgres/queries.ts'
import { openSink } from '../../../connectors/postgres/sink.ts'
import { sinkConformance, type Target } from '../../conformance/sink.ts'
import { sql, type PostgresVersion } from '../../support/postgres.ts'
import { needs, postgres } from '../../support/servers.ts'

async function open(version: PostgresVersion, tables: readonly TableSchema[]): Promise<Target> {
  const server = await postgres(version)
  const url = await server.database('sink')
  for (const { table, columns, key } of tables) {
    const parts = columns.map(({ name, type, nullable }) => `${ident(name)} ${type} ${nullable ? '' : 'not null'}`)
    if (key.length > 0) parts.push(`primary key (${key.map((c) => ident(columns[c]?.name ?? '')).join(', ')})`)
    await sql(url, `create table ${qualified(table)} (${parts.join(', ')})`)
  }
  const signal = new AbortController().signal
  const sink = await openSink(parse({ url }), { pipeline: 'p', dir: '/nowhere', log: silent }, signal)
  return {
    sink,
    async rows(table) {
      const schema = tables.find((known) => known.table === table)
      const columns = schema?.columns.map(({ name }) => ident(name)) ?? []
      const key = schema?.key.map((c) => columns[c]) ?? []
      const order = key.length > 0 ? ` order by ${key.join(', ')}` : ''
      const text = columns.map((name) => `${name}::text`).join(', ')
      const rows = await sql<{ row: (string | null)[] }>(
        url,
        `select array[${text}] as row from ${qualified(table)}${order}`,
      )
      return rows.map(({ row }) => row)
    },
    [Symbol.asyncDispose]: async () => await sink[Symbol.asyncDispose](),
  }
}

sinkConformance('PostgreSQL 18', async (tables) => await open(18, tables), needs('pg').skip)
sinkConformance('PostgreSQL 14', async (tables) => await open(14, tables), needs('pg14').skip)
