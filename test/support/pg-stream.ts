import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { parse, replicationOptions } from '../../connectors/postgres/config.ts'
import { parseLsn } from '../../connectors/postgres/position.ts'
import type { Tables } from '../../connectors/postgres/history.ts'
import type { Left } from '../../connectors/postgres/version.ts'
import type { Relation } from '../../connectors/postgres/pgoutput.ts'
import { readCatalog, tableSchema } from '../../connectors/postgres/schema.ts'
import { createPublication, selectServerVersion, selectSlot } from '../../connectors/postgres/source-queries.ts'
import { openStream, type StreamOptions } from '../../connectors/postgres/stream.ts'
import type { ChangeStream } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import { origin, tableName, type TableId, type TableSchema } from '../../src/model.ts'
import { flatten, type Flat } from './flatten.ts'

/** A database with a publication over all of its tables, and slots on it. Disposed of with all it made. */
export interface StreamBed extends AsyncDisposable {
  readonly url: string
  readonly client: pg.Client
  readonly publication: string
  /** A slot for our stream. */
  slot(): Promise<string>
  open(slot: string, options?: Partial<StreamOptions>, signal?: AbortSignal): Promise<ChangeStream>
  confirmed(slot: string): Promise<bigint>
}

export async function streamBed(url: string, ddl: string): Promise<StreamBed> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  await client.query(ddl)
  const name = `t_${randomBytes(4).toString('hex')}`
  const catalog = await readCatalog(client, () => true)
  const schemas = new Map(catalog.map((table) => [tableName(table.table), tableSchema(table, 1)]))
  await createPublication(
    client,
    name,
    catalog.map(({ table }) => table),
  )
  const serverVersion = await selectServerVersion(client)
  const config = parse({ url })
  const dirs: string[] = []
  const slots: string[] = []
  return {
    url,
    client,
    publication: name,
    async slot() {
      const slot = `${name}_${slots.length}`
      await client.query("select pg_create_logical_replication_slot($1, 'pgoutput')", [slot])
      slots.push(slot)
      return slot
    },
    async open(slot, options = {}, signal = new AbortController().signal) {
      const dir = await mkdtemp(join(tmpdir(), 'crossfade-stream-'))
      dirs.push(dir)
      return await openStream(
        {
          client: replicationOptions(config, 'stream', 'test'),
          slot,
          publication: name,
          serverVersion,
          after: origin,
          confirmed: await confirmed(slot),
          tables: fixedTables(({ table }) => schemas.get(tableName(table)) ?? unknownTable(table)),
          ours: (from) => from.startsWith('crossfade:test:'),
          dir,
          ...options,
        },
        signal,
      )
    },
    confirmed,
    async [Symbol.asyncDispose]() {
      for (const slot of slots) {
        for (let attempt = 0; attempt < 50; attempt++) {
          const gone = await client
            .query('select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1', [slot])
            .then(
              () => true,
              () => false,
            )
          if (gone) break
          await client.query('select pg_sleep(0.05)').catch(() => {})
        }
      }
      await client.end()
      for (const dir of dirs) await rm(dir, { recursive: true, force: true })
    },
  }
  async function confirmed(slot: string): Promise<bigint> {
    const found = await selectSlot(client, slot)
    return parseLsn(found?.confirmed_flush_lsn ?? '0/0')
  }
}

/** Tables that never change. */
export function fixedTables(
  schemaOf: (relation: Relation) => TableSchema | Failure | undefined,
  left: readonly Left[] = [],
): Tables {
  return {
    left: (oid) => left.find((one) => one.oid === oid),
    ahead: () => false,
    at: schemaOf,
    passing: () => [],
    settle: async () => {},
  }
}

function unknownTable(table: TableId): Failure {
  return new Failure('TABLE_CHANGED', { object: tableName(table), observed: 'not among the tables of this stream' })
}

/** Pulls until `enough` says so of all that came. */
export async function readUntil(stream: ChangeStream, enough: (all: readonly Flat[]) => boolean): Promise<Flat[]> {
  const all: Flat[] = []
  const iterator = stream[Symbol.asyncIterator]()
  while (!enough(all)) {
    const { value, done } = await iterator.next()
    if (done) throw new Error('the stream ended early')
    all.push(...flatten(value))
  }
  return all
}

/** Up to the message with this content, which is the last. */
export async function readToMessage(stream: ChangeStream, content: string): Promise<Flat[]> {
  return await readUntil(stream, (all) => all.some((flat) => flat.kind === 'message' && flat.content === content))
}
