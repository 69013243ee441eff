import { readCatalog, tableSchema } from '../../../connectors/postgres/schema.ts'
import { parse } from '../../../connectors/postgres/config.ts'
import { openSink } from '../../../connectors/postgres/sink.ts'
import type { Lane, Sink } from '../../../src/connector.ts'
import { silent, type Logger } from '../../../src/logger.ts'
import type { Checkpoint, Position, TableSchema, TopicPartition } from '../../../src/model.ts'
import pg from 'pg'
import { sql, type PostgresVersion } from '../../support/postgres.ts'
import { postgres } from '../../support/servers.ts'

export const never: AbortSignal = new AbortController().signal
export const at: TopicPartition = { topic: 't', partition: 0 }

interface Bench extends AsyncDisposable {
  readonly url: string
  readonly sink: Sink
  readonly lane: Lane
  readonly from: Checkpoint
  /** Statements as a user of the target. */
  sql<Row extends pg.QueryResultRow = Record<string, unknown>>(text: string, values?: unknown[]): Promise<Row[]>
  schema(name: string): Promise<TableSchema>
  another(): Promise<Lane>
}

/** A database of its own made by `ddl`, a sink and a lane that holds one live partition. */
export async function bench(
  ddl: string,
  {
    version = 18,
    log = silent,
    user,
    pipeline = 'p',
  }: { version?: PostgresVersion; log?: Logger; user?: string; pipeline?: string } = {},
): Promise<Bench> {
  const server = await postgres(version)
  const url = await server.database('lane')
  await sql(url, ddl)
  const address = new URL(url)
  if (user !== undefined) address.username = user
  const sink = await openSink(parse({ url: address.href }), { pipeline, dir: '/nowhere', log }, never)
  await sink.prepare([], 'before', undefined, never)
  const copy = { table: { schema: 'public', name: 'x' }, partitions: [at], snapshot: '' as Position, live: true }
  await sink.setCopies([copy], 1, never)
  const lanes: Lane[] = []
  const another = async (): Promise<Lane> => {
    const made = await sink.lane(never)
    lanes.push(made)
    return made
  }
  const lane = await another()
  const [from] = await lane.claim([at], 1, never)
  if (!from) throw new Error('nothing claimed')
  return {
    url,
    sink,
    lane,
    from,
    another,
    sql: async (text, values) => await sql(url, text, values),
    async schema(name) {
      const client = new pg.Client({ connectionString: url })
      await client.connect()
      try {
        const [table] = await readCatalog(client, (id) => id.name === name)
        if (!table) throw new Error(`no table ${name}`)
        return tableSchema(table, 1)
      } finally {
        await client.end()
      }
    },
    async [Symbol.asyncDispose]() {
      for (const made of lanes) await made[Symbol.asyncDispose]()
      await sink[Symbol.asyncDispose]()
    },
  }
}
