import { isDeepStrictEqual } from 'node:util'
import type { Client } from 'pg'
import type { Context } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import type { Logger } from '../../src/logger.ts'
import { tableName, type TableId, type TableSchema } from '../../src/model.ts'
import { Output } from '../../src/output.ts'
import { mapError, sqlState } from './errors.ts'
import { appendClose, appendParse, appendSync, breakOff, roundTrip, RoundTripError } from './frontend.ts'
import { readCatalog, type CatalogTable } from './schema.ts'
import { planTable, type Plan, type Statement } from './statements.ts'

/** The target's tables as last read; all lanes of a sink share it. */
export interface Targets {
  get(table: TableId): CatalogTable | undefined
  /** Reads the catalog again; the sooner of several calls at once serves all. */
  refresh(client: Client): Promise<void>
}

export function targetTables(): Targets {
  let tables = new Map<string, CatalogTable>()
  let reading: Promise<void> | undefined
  return {
    get: (table) => tables.get(tableName(table)),
    refresh(client) {
      reading ??= readCatalog(client, () => true)
        .then((found) => {
          tables = new Map(found.map((table) => [tableName(table.table), table]))
        })
        .finally(() => {
          reading = undefined
        })
      return reading
    },
  }
}

/** What a lane's parts share: one connection, its prepared statements and the buffer of the batch being built. */
export interface Session {
  readonly client: Client
  readonly pipeline: string
  readonly log: Logger
  readonly targets: Targets
  /** Whether a change of a table is made here, or is an operator's to make. */
  readonly ddl: 'apply' | 'stop'
  readonly out: Output
  /** Resolves at once when the table is known. */
  plan(schema: TableSchema): Promise<Plan>
  /** Of a table whose plan was made. */
  planned(schema: TableSchema): Plan
  /** Name of a prepared statement; a new one is prepared by the next `send`. */
  readonly name: (statement: Statement) => string
  /** One round trip with what stands in `out`, and a Sync; one more before it for new statements. */
  send(): Promise<number>
  /** Drops what stands in `out`. */
  drop(): void
  /** A transaction that is on disk when it resolves (H33). An error of the work rolls it back and comes out as it is. */
  durably<T>(work: () => Promise<T>, settings?: string): Promise<T>
  /** Settings of a transaction that may take long. */
  unhurried(): Promise<string>
  /** Runs a call of the lane. An abort breaks the connection off: nothing of the call is committed later than that, except what already was. */
  call<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T>
  /** Names the writes from now on (H10). Each name takes one of the few places a server has for them, for good: a copy, which comes before any way back
   *  exists, does without. */
  nameWrites(): Promise<void>
  /** Plans made before the target changed are no longer used. */
  forget(): Promise<void>
}

const mostStatements = 1000

/** Prepares the connection for batches. `durable`: the value of synchronous_commit under which a commit is on disk. */
export function session(
  client: Client,
  { pipeline, log, ddl = 'stop' }: Pick<Context, 'pipeline' | 'log' | 'ddl'>,
  targets: Targets,
  durable: string,
): Session {
  const out = new Output(1 << 16)
  const parses = new Output(1 << 12)
  let plans = new Map<string, Plan[]>()
  /** Schemas come from the log again and again as new objects that say the same. */
  let bySchema = new WeakMap<TableSchema, Plan>()
  const forgetPlans = (): void => {
    plans = new Map()
    bySchema = new WeakMap()
  }
  let names = new Map<Statement, string>()
  let unparsed: { readonly name: string; readonly statement: Statement }[] = []
  let last = 0
  let named = false

  /** Between calls: statements of tables long gone would pile up in the server. */
  const closeAll = async (): Promise<void> => {
    for (const name of names.values()) appendClose(parses, name)
    appendSync(parses)
    names = new Map()
    await roundTrip(client, parses)
  }
  const self: Session = {
    client,
    pipeline,
    log,
    targets,
    ddl,
    out,
    async plan(schema) {
      const seen = bySchema.get(schema)
      if (seen) return seen
      const name = tableName(schema.table)
      const same = plans.get(name)?.find((plan) => isDeepStrictEqual(plan.schema, schema))
      if (same) {
        bySchema.set(schema, same)
        return same
      }
      if (!targets.get(schema.table)) await targets.refresh(client)
      const table = targets.get(schema.table)
      if (!table) throw new Failure('TABLE_MISSING', { object: name, observed: 'not at the target' })
      const made = planTable(schema, table)
      plans.set(name, [...(plans.get(name) ?? []), made])
      bySchema.set(schema, made)
      return made
    },
    planned(schema) {
      const plan = bySchema.get(schema)
      if (!plan)
        throw new Failure('BUG', { object: tableName(schema.table), observed: 'written before it was planned' })
      return plan
    },
    name(statement) {
      let name = names.get(statement)
      if (name === undefined) {
        name = `crossfade_${++last}`
        names.set(statement, name)
        unparsed.push({ name, statement })
      }
      return name
    },
    async send() {
      if (unparsed.length > 0) {
        const fresh = unparsed
        unparsed = []
        for (const { name, statement } of fresh) appendParse(parses, name, statement.sql, statement.types)
        appendSync(parses)
        try {
          await roundTrip(client, parses)
        } catch (error) {
          for (const { statement } of fresh) names.delete(statement)
          out.at = 0
          throw error instanceof RoundTripError ? mapError(error.cause) : error
        }
      }
      appendSync(out)
      const completed = await roundTrip(client, out)
      return completed
    },
    drop() {
      out.at = 0
    },
    async durably(work, settings = '') {
      await client.query(`begin; set local synchronous_commit = ${durable}; ${settings}`)
      try {
        const result = await work()
        await client.query('commit')
        return result
      } catch (error) {
        await client.query('rollback').catch(() => {})
        throw error
      }
    },
    async call(signal, work) {
      signal.throwIfAborted()
      const abort = (): void => breakOff(client)
      signal.addEventListener('abort', abort, { once: true })
      try {
        if (plans.size > mostStatements) forgetPlans()
        if (names.size > mostStatements) await closeAll()
        return await work()
      } catch (error) {
        if (signal.aborted) throw signal.reason
        throw error instanceof RoundTripError ? mapError(error.cause) : mapError(error)
      } finally {
        signal.removeEventListener('abort', abort)
        out.clear()
      }
    },
    async unhurried() {
      const { rows } = await client.query<{ has: boolean }>(
        `select current_setting('server_version_num')::int >= 170000 as has`,
      )
      return rows[0]?.has === true ? 'set local transaction_timeout = 0' : ''
    },
    async nameWrites() {
      if (!named) await setOrigin(client, pipeline, log)
      named = true
    },
    async forget() {
      forgetPlans()
      await targets.refresh(client)
    },
  }
  return self
}

/** Settings of every session that writes. Returns the value of synchronous_commit for what must be on disk. */
export async function prepareSession(client: Client, log: Logger): Promise<string> {
  const { rows } = await client.query<{ commit: string; version: number }>(
    `select current_setting('synchronous_commit') as commit, current_setting('server_version_num')::int as version`,
  )
  const commit = rows[0]?.commit ?? 'on'
  // Planned once, before the table has grown, and for a handful of rows: only an index keeps its promise.
  await client.query(
    `set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_hashjoin = off;
     set enable_mergejoin = off; set jit = off; set synchronous_commit = off`,
  )
  // A process that stops in the middle of sending a batch keeps its locks: the server ends it at last.
  if ((rows[0]?.version ?? 0) >= 170000) await client.query(`set transaction_timeout = '5min'`)
  await tolerate(client, `set client_connection_check_interval = '2s'`)
  if (!(await tolerate(client, 'set session_replication_role = replica')))
    log.info({}, 'triggers and foreign keys of the target stay active: no right to set session_replication_role')
  return commit === 'off' ? 'on' : commit
}

async function tolerate(client: Client, sql: string): Promise<boolean> {
  try {
    await client.query(sql)
    return true
  } catch (error) {
    if (sqlState(error) === undefined) throw error
    return false
  }
}

/** Names our writes in the write-ahead log, so that a stream in the other direction can leave them out (H10): the first origin of ours that no
 *  other session uses. Without the right, or a free place, nothing is named. */
async function setOrigin(client: Client, pipeline: string, log: Logger): Promise<void> {
  for (let n = 1; n <= 64; n++) {
    const name = `crossfade:${pipeline}:${n}`
    try {
      await client.query('select pg_replication_origin_create($1) where pg_replication_origin_oid($1) is null', [name])
      await client.query('select pg_replication_origin_session_setup($1)', [name])
      return
    } catch (error) {
      const state = sqlState(error)
      if (state === undefined) throw error
      // Created by another at this moment: ours to try again. Used by another: the next one.
      if (state === '23505') n--
      else if (state !== '55006') {
        if (state === '53400')
          log.warn(
            { code: state, next: 'crossfade check names those of other pipelines' },
            'writes to the target carry no replication origin: the server has no free place for one',
          )
        else log.info({ code: state }, 'writes to the target carry no replication origin')
        return
      }
    }
  }
}
