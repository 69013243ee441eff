import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { parse } from '../../connectors/postgres/config.ts'
import { openSource, type SourceOptions } from '../../connectors/postgres/source.ts'
import type { Source } from '../../src/connector.ts'
import { memoryStore, type StateStore } from '../../src/coordinate/state-store.ts'
import { silent } from '../../src/logger.ts'
import type { Position, TableSchema } from '../../src/model.ts'

/** A database with a pipeline's source on it; disposed of with slot and publication. */
export interface PgSourceBed extends AsyncDisposable {
  readonly url: string
  readonly client: pg.Client
  readonly pipeline: string
  /** Slot and publication. */
  readonly name: string
  readonly state: StateStore
  open(options?: SourceOptions): Promise<Source>
  tables(source: Source): Promise<readonly TableSchema[]>
  /** Retains all tables; resolves to where changes begin. */
  retain(source: Source): Promise<Position>
}

const never = new AbortController().signal

export async function pgSourceBed(url: string, ddl: string): Promise<PgSourceBed> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  await client.query(ddl)
  const pipeline = `t${randomBytes(5).toString('hex')}`
  const name = `crossfade_${pipeline}`
  const dir = await mkdtemp(join(tmpdir(), 'crossfade-source-'))
  const state = memoryStore()
  const bed: PgSourceBed = {
    url,
    client,
    pipeline,
    name,
    state,
    open: (options) => openSource(parse({ url }), { pipeline, dir, log: silent }, state, never, options),
    tables: (source) => source.tables(({ schema }) => schema === 'public', never),
    async retain(source) {
      const snapshot = await source.retain(await bed.tables(source), never)
      if (!snapshot) throw new Error('retained before')
      await snapshot[Symbol.asyncDispose]()
      return snapshot.position
    },
    async [Symbol.asyncDispose]() {
      await client
        .query(
          `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '${name}' and active_pid is not null`,
        )
        .catch(() => {})
      for (let attempt = 0; attempt < 50; attempt++) {
        const gone = await client
          .query(`select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '${name}'`)
          .then(
            () => true,
            () => false,
          )
        if (gone) break
        await client.query('select pg_sleep(0.05)').catch(() => {})
      }
      await client.end().catch(() => {})
      await rm(dir, { recursive: true, force: true })
    },
  }
  return bed
}
