import type { Client } from 'pg'
import type { Context, Sink } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import { tableName, type Checkpoint, type Epoch, type TableCopy, type TableId, type Start } from '../../src/model.ts'
import { checkOccupied, checkTarget } from './check-target.ts'
import { close, connect, type PostgresConfig } from './config.ts'
import { controlConnection } from './control.ts'
import { applyDdl } from './ddl.ts'
import { deleteCopies } from './delete-copies.ts'
import { mapError, orNone } from './errors.ts'
import { failpoint } from '../../src/failpoint.ts'
import { lookLimitMs, namingLockers } from './lockers.ts'
import { openLane } from './lane.ts'
import { prepareSession, session, targetTables, type Targets } from './lane-session.ts'
import { selectIdentity } from './queries.ts'
import { openReader } from './reader.ts'
import { readShape } from './shape-of.ts'
import {
  insertCheckpoints,
  migrate,
  selectCheckpoints,
  selectCopies,
  setSequences,
  terminateLoads,
  updateHolds,
  upsertCopies,
} from './sink-queries.ts'

/** The target. Own tables stand in its schema crossfade, the pipeline's name in every key: several pipelines may write to one target.
 *  What only reads answers on a target without own tables as on one that is empty. */
export async function openSink(config: PostgresConfig, context: Context, signal: AbortSignal): Promise<Sink> {
  const { pipeline } = context
  const targets = targetTables()
  const control = controlConnection((given) =>
    connect(config, { name: 'control', pipeline, lockTimeoutMs: lookLimitMs }, given),
  )
  await control.use(signal, async () => {})
  return {
    identity: async (given) => await control.use(given, async (client) => await selectIdentity(client)),
    shape: async (tables, given) => await readShape(config, pipeline, tables, given),
    check: async (tables, given, about) =>
      await control.use(given, async (client) => await checkTarget(client, tables, about, pipeline)),
    occupied: async (tables, given) => await control.use(given, async (client) => await checkOccupied(client, tables)),
    present: async (tables, given) =>
      await control.use(given, async (client) => {
        await namingLockers(client, async () => await targets.refresh(client))
        return tables.map(({ table }) => table).filter((table) => targets.get(table) !== undefined)
      }),
    async prepare(_, phase, ddl, given) {
      if (phase === 'before') await control.use(given, migrate)
      if (ddl) await applyDdl(config, ddl, phase, given)
      await control.use(given, async (client) => await targets.refresh(client))
    },
    setCopies: async (copies, epoch, given, start) =>
      await control.use(given, async (client) => await setCopies(client, pipeline, copies, epoch, start)),
    leave: async (tables, epoch, given) =>
      await control.use(given, async (client) => {
        await inTransaction(client, async () => refuse(await deleteCopies(client, pipeline, tables, epoch), epoch))
      }),
    copies: async (given) =>
      await control.use(
        given,
        async (client) => (await orNone(async () => await selectCopies(client, pipeline))) ?? [],
      ),
    checkpoints: async (given): Promise<readonly Checkpoint[]> =>
      await control.use(
        given,
        async (client) => (await orNone(async () => await selectCheckpoints(client, pipeline))) ?? [],
      ),
    lane: async (given) => await lane(config, context, targets, given),
    advance: async (counters, given) =>
      await control.use(given, async (client) => {
        if (counters.length > 0) await setSequences(client, counters)
      }),
    reader: async (given) => await openReader(config, 'now', pipeline, given),
    [Symbol.asyncDispose]: async () => await control.close(),
  }
}

async function lane(
  config: PostgresConfig,
  context: Context,
  targets: Targets,
  signal: AbortSignal,
): ReturnType<Sink['lane']> {
  const client = await connect(config, { name: 'lane', pipeline: context.pipeline }, signal)
  try {
    const durable = await prepareSession(client, context.log)
    await targets.refresh(client)
    return openLane(session(client, context, targets, durable))
  } catch (error) {
    await close(client)
    throw mapError(error)
  }
}

async function setCopies(
  client: Client,
  pipeline: string,
  copies: readonly TableCopy[],
  epoch: Epoch,
  start: Start | undefined,
): Promise<void> {
  await terminateLoads(client, pipeline, epoch)
  await inTransaction(client, async () => {
    const written = new Set((await upsertCopies(client, pipeline, copies, epoch)).map(tableName))
    const tables = copies.map(({ table }) => table)
    refuse(
      tables.filter((table) => !written.has(tableName(table))),
      epoch,
    )
    const partitions = copies.flatMap((copy) => copy.partitions)
    await insertCheckpoints(client, pipeline, partitions, start)
    // Changes after the snapshot find the rows they change; those up to it may not, for their rows may come with the copy, or be gone.
    await updateHolds(client, pipeline, copies)
    failpoint('hold.before-commit')
  })
}

function refuse(tables: readonly TableId[], epoch: Epoch): void {
  if (tables.length === 0) return
  throw new Failure('FENCED', {
    object: tables.slice(0, 5).map(tableName).join(', '),
    observed: `a later epoch than ${epoch} wrote its copy`,
  })
}

async function inTransaction(client: Client, work: () => Promise<void>): Promise<void> {
  await client.query(`begin; set local lock_timeout = '10s'`)
  try {
    await work()
    await client.query('commit')
  } catch (error) {
    await client.query('rollback').catch(() => {})
    throw error
  }
}
