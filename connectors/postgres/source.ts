import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import type { ChangeStream, Context, Source, TableFilter } from '../../src/connector.ts'
import type { StateStore } from '../../src/coordinate/state-store.ts'
import { Failure } from '../../src/errors.ts'
import { tableName, type Position, type Counter } from '../../src/model.ts'
import { ask } from './answer.ts'
import { checkSource } from './check.ts'
import { selectTypeParts } from './check-queries.ts'
import { close, connect, endWhenSilent, replicationOptions, type PostgresConfig } from './config.ts'
import { readDdl } from './ddl.ts'
import { checkPlace, demandPublished, readLine, type Line } from './divergence.ts'
import { lookLimitMs, namingLockers } from './lockers.ts'
import { parseLsn, positionOf, snapshotPosition } from './position.ts'
import { qualified, selectIdentity } from './queries.ts'
import { openReader } from './reader.ts'
import type { Retained } from './retained.ts'
import { takeOverMs } from './retain.ts'
import { openRetention } from './retention.ts'
import { tableHistory } from './history.ts'
import { readCatalog, tableSchema } from './schema.ts'
import { readShape } from './shape-of.ts'
import { freeSlot, openSlot } from './slots.ts'
import {
  emitMessage,
  selectLoad,
  selectSenderTimeout,
  selectSequences,
  selectSequenceState,
  selectServerVersion,
  selectTypeName,
  terminateReaders,
} from './source-queries.ts'
import { checkStart } from './start.ts'
import { openStream } from './stream.ts'
import { waitUntilVisible } from './visibility.ts'

export type SourceOptions = {
  /** How long a new slot waits for open transactions. */
  readonly snapshotLimitMs?: number
  readonly statusIntervalMs?: number
  readonly readAheadBytes?: number
  readonly spool?: { readonly memoryBytes: number; readonly diskBytes: number }
}
const snapshotLimitMs = 60_000
const oldestServer = 140_000

/** Slot and publication are called `crossfade_<pipeline>`. `state` belongs to this pipeline alone. */
export async function openSource(
  config: PostgresConfig,
  context: Context,
  state: StateStore,
  signal: AbortSignal,
  options: SourceOptions = {},
): Promise<Source> {
  const { pipeline } = context
  const name = `crossfade_${pipeline}`
  const control = await connect(config, { name: 'source', pipeline, lockTimeoutMs: lookLimitMs }, signal)
  const stop = new AbortController()
  const serverVersion = await ask(selectServerVersion(control), signal).catch(async (error: unknown) => {
    await close(control)
    throw error
  })
  if (serverVersion < oldestServer) {
    await close(control)
    throw new Failure('UNSUPPORTED', { object: 'source', observed: `version ${serverVersion}`, needed: '14 or later' })
  }
  const limitMs = options.snapshotLimitMs ?? snapshotLimitMs
  const retention = openRetention(state, { control, config, context, name, serverVersion, snapshotLimitMs: limitMs })

  /** Only what is followed is recorded: another start must be able to see that it is not. */
  async function demandHeld(made: Retained, line: Line, published: Position): Promise<void> {
    const { insert_lsn: end } = await retention.slot(stop.signal)
    demandPublished(made, line, published, parseLsn(end))
    if (line.timeline !== made.timeline) await retention.setTimeline(made, line.timeline, stop.signal)
  }

  async function changes(after: Position, signal: AbortSignal): Promise<ChangeStream> {
    const made = await retention.load(signal)
    if (made?.state !== 'made') {
      throw new Failure('SLOT_LOST', { object: `slot ${name}`, observed: 'this pipeline never retained anything' })
    }
    const { versions, left = [] } = (await retention.check(signal)) ?? made
    const tables = tableHistory({
      versions,
      left,
      after,
      looked: await retention.shapes(signal),
      look: retention.shapes,
      keep: async (shapes) => await retention.keepShapes(shapes, stop.signal),
      typeName: async (type, typmod) => await ask(selectTypeName(control, type, typmod), stop.signal),
      digest: async () => await retention.digest(stop.signal),
      record: async (fresh) => await retention.addVersions(fresh, stop.signal),
    })
    const deadline = performance.now() + takeOverMs
    for (;;) {
      const slot = await retention.slot(signal)
      const confirmed = parseLsn(slot.confirmed_flush_lsn ?? '0/0')
      checkPlace(name, made, after, confirmed, parseLsn(slot.insert_lsn))
      await freeSlot(control, pipeline, name, deadline, signal)
      try {
        const { statusIntervalMs, readAheadBytes, spool } = options
        const timeout = await ask(selectSenderTimeout(control), signal)
        let line: Line = { timeline: made.timeline }
        const interval = statusIntervalMs ?? Math.max(100, Math.min(5_000, timeout / 4))
        const settings = {
          client: replicationOptions(config, 'stream', pipeline),
          slot: name,
          publication: name,
          serverVersion,
          after,
          confirmed,
          tables,
          ours: (origin: string) => origin.startsWith(`crossfade:${pipeline}:`),
          dir: join(context.dir, 'source'),
          watch: (client: pg.Client) => endWhenSilent(client, config, { always: true }),
          prepare: async (client: pg.Client) => {
            // A large transaction is sent within one of the sender's own.
            if (serverVersion >= 170_000) await client.query('set transaction_timeout = 0')
            line = await readLine(client, made, after)
          },
          demandHeld: async (published: Position) => await demandHeld(made, line, published),
          statusIntervalMs: interval,
          ...(readAheadBytes === undefined ? {} : { readAheadBytes }),
          ...(spool === undefined ? {} : { spool }),
        }
        return await openStream(settings, AbortSignal.any([signal, stop.signal]))
      } catch (error) {
        const taken = error instanceof Failure && error.code === 'SLOT_IN_USE' && performance.now() < deadline
        if (!taken) throw error
        await sleep(50, undefined, { signal })
      }
    }
  }

  return {
    async check(filter, signal, startAt) {
      const findings = await ask(checkSource(control, filter, pipeline), signal)
      if (startAt === undefined) return findings
      const tables = (await ask(readCatalog(control, filter), signal)).map(({ table }) => table)
      return [...findings, ...(await ask(checkStart(control, name, tables, startAt, serverVersion), signal))]
    },
    async tables(filter, signal) {
      const looked = namingLockers(control, async () => await readCatalog(control, filter))
      const catalog = await ask(looked, signal)
      return catalog.map((table) => tableSchema(table, 1))
    },
    async types(tables, signal) {
      const names = new Set(tables.map(({ table }) => tableName(table)))
      const looked = namingLockers(control, async () => {
        const catalog = await readCatalog(control, (table) => names.has(tableName(table)))
        return await selectTypeParts(
          control,
          catalog.map(({ oid }) => oid),
        )
      })
      return await ask(looked, signal)
    },
    versions: async (signal) => ((await retention.load(signal))?.versions ?? []).map(({ schema }) => schema),
    retain: retention.retain,
    async adopt(tables, startAt, signal) {
      await retention.adopt(tables, startAt, signal)
      return snapshotPosition(parseLsn(startAt))
    },
    async snapshot(signal) {
      const slot = `${name.slice(0, 46)}_${process.pid}_${Date.now().toString(36)}`
      const wanted = { config, pipeline, slot, temporary: true, serverVersion, limitMs }
      // Ours are closed between rounds. Those of a worker that is stopped keep a truncate waiting, which in turn keeps the slot waiting.
      await ask(terminateReaders(control, pipeline), signal)
      return (await openSlot(control, wanted, signal)).snapshot
    },
    reader: (at, signal) => openReader(config, at, pipeline, signal),
    changes,
    shape: async (tables, signal) => await readShape(config, pipeline, tables, signal),
    identity: async (signal) => await ask(selectIdentity(control), signal),
    async emit(prefix, content, signal) {
      await retention.checkNowAndThen(signal)
      await ask(emitMessage(control, prefix, content), signal)
    },
    async health(signal) {
      await retention.checkNowAndThen(signal)
      const slot = await retention.slot(signal)
      const insert = positionOf(parseLsn(slot.insert_lsn))
      const kept = slot.restart_lsn === null ? undefined : Number(parseLsn(slot.wal_lsn) - parseLsn(slot.restart_lsn))
      return {
        position: insert,
        slot: name,
        ...(kept === undefined ? {} : { retainedBytes: kept }),
        ...(slot.safe_wal_size === null ? {} : { safeBytes: Number(slot.safe_wal_size) }),
      }
    },
    visible: async (signal) => positionOf(await waitUntilVisible(control, signal)),
    load: async (signal) => await ask(selectLoad(control), signal),
    ddl: (tables, style, signal) => readDdl(config, tables, style, signal),
    counters: async (filter, signal) => await ask(readCounters(control, filter), signal),
    release: retention.release,
    async [Symbol.asyncDispose]() {
      stop.abort(new Failure('SERVER_UNREACHABLE', { object: 'source', observed: 'closed' }))
      await close(control)
    },
  }
}

async function readCounters(client: pg.Client, filter: TableFilter): Promise<readonly Counter[]> {
  const tables = (await readCatalog(client, filter)).map(({ table }) => table)
  const counters: Counter[] = []
  for (const sequence of await selectSequences(client, tables)) {
    const now = await selectSequenceState(client, sequence)
    if (!now) continue
    const value = BigInt(now.last_value) + (now.is_called ? BigInt(sequence.increment) : 0n)
    counters.push({ name: qualified(sequence), value })
  }
  return counters
}
