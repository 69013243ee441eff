import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import type { Snapshot } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import { close, connect, type PostgresConfig } from './config.ts'
import { ask } from './answer.ts'
import { mapError, sqlState } from './errors.ts'
import { failpoint } from '../../src/failpoint.ts'
import { parseLsn, snapshotPosition } from './position.ts'
import {
  adoptSnapshot,
  cancelBackend,
  createSlot,
  identifySystem,
  selectApplicationName,
  selectBlockers,
  selectSlot,
  terminateBackend,
  type System,
} from './source-queries.ts'

type SlotOptions = {
  readonly config: PostgresConfig
  readonly pipeline: string
  readonly slot: string
  readonly temporary: boolean
  readonly serverVersion: number
  /** How long open transactions are waited for. */
  readonly limitMs: number
}
/** A slot and the view of the rows at its start. A temporary slot is gone when this resolves: only its view is wanted. */
type MadeSlot = { readonly system: System; readonly consistentPoint: bigint; readonly snapshot: Snapshot }

/**
 * Creates a slot, which waits for every transaction open at that moment: beyond the limit SNAPSHOT_BLOCKED names them and
 * nothing is left. The view lives in a session of its own, so that neither a slot nor a sender is held while rows are read.
 */
export async function openSlot(control: pg.Client, options: SlotOptions, signal: AbortSignal): Promise<MadeSlot> {
  const { config, pipeline, slot, temporary, serverVersion } = options
  const sender = await connect(config, { name: 'slot', pipeline, replication: true }, signal).catch(
    (error: unknown) => {
      throw slotFailure(error, slot)
    },
  )
  try {
    const system = await identifySystem(sender)
    const made = await bounded(createSlot(sender, slot, temporary, serverVersion), control, sender, options, signal)
    const consistentPoint = parseLsn(made.consistent_point)
    failpoint('retain.between-slot-and-snapshot')
    const holder = await connect(config, { name: 'snapshot', pipeline }, signal)
    try {
      const id = await adoptSnapshot(holder, made.snapshot_name)
      const snapshot: Snapshot = {
        id,
        position: snapshotPosition(consistentPoint),
        exact: true,
        async [Symbol.asyncDispose]() {
          await close(holder)
        },
      }
      return { system, consistentPoint, snapshot }
    } catch (error) {
      await close(holder)
      throw error
    }
  } catch (error) {
    throw slotFailure(error, slot)
  } finally {
    await close(sender)
  }
}

async function bounded<T>(
  creating: Promise<T>,
  control: pg.Client,
  sender: pg.Client,
  { slot, limitMs }: SlotOptions,
  signal: AbortSignal,
): Promise<T> {
  const stop = new AbortController()
  const outcome = creating.finally(() => stop.abort())
  const limit = sleep(limitMs, undefined, { signal: AbortSignal.any([stop.signal, signal]) }).catch(() => {})
  const first = await Promise.race([
    outcome.then(
      () => 'made' as const,
      () => 'failed' as const,
    ),
    limit,
  ])
  if (first !== undefined) return await outcome
  // A session that waits for a lock does not notice that its client went: it is told.
  const pid = (sender as unknown as { readonly processID: number }).processID
  const blockers = signal.aborted ? [] : await selectBlockers(control, pid)
  await cancelBackend(control, pid)
  try {
    return await outcome // made at the last moment, after all
  } catch (error) {
    signal.throwIfAborted()
    if (sqlState(error) !== '57014') throw error
    throw new Failure('SNAPSHOT_BLOCKED', {
      object: `slot ${slot}`,
      observed: `waited ${Math.round(limitMs / 1000)} s for ${blockers.join('; ') || 'transactions that have ended since'}`,
      needed: 'every transaction open when the slot is created must end',
      effect: 'Nothing was left at the source; it is tried again',
    })
  }
}

/** Ends a former worker of this pipeline that holds the slot; resolves when the slot is free or gone. Somebody else's is SLOT_IN_USE; a worker of ours
 *  that has not ended at the deadline is SERVER_BUSY: the server ends it in its own time. */
export async function freeSlot(
  control: pg.Client,
  pipeline: string,
  slot: string,
  deadline: number,
  signal: AbortSignal,
): Promise<void> {
  const object = `slot ${slot}`
  for (let told = 0; ;) {
    const row = await ask(selectSlot(control, slot), signal, object)
    const pid = row?.active_pid ?? undefined
    if (pid === undefined) return
    if (pid !== told) {
      const name = await ask(selectApplicationName(control, pid), signal, object)
      // Gone between the two questions: asked again.
      if (name !== undefined && !name.startsWith(`crossfade ${pipeline} `)) throw inUse(slot, pid, name)
      if (name !== undefined) {
        await ask(terminateBackend(control, pid), signal, object)
        told = pid
      }
    }
    if (performance.now() > deadline) {
      throw new Failure('SERVER_BUSY', {
        object,
        observed: `pid ${pid}, which reads it for a former worker of ours, was told to end and has not yet`,
      })
    }
    await sleep(20, undefined, { signal })
  }
}

function inUse(slot: string, pid: number, name: string | undefined): Failure {
  return new Failure('SLOT_IN_USE', {
    object: `slot ${slot}`,
    observed: `pid ${pid} (${name || 'no application name'}) reads it`,
    next: `Stop that consumer (select pg_terminate_backend(${pid})), or choose another pipeline name`,
  })
}

function slotFailure(error: unknown, slot: string): unknown {
  const object = `slot ${slot}`
  const state = sqlState(error)
  const observed = error instanceof Error ? error.message : String(error)
  if (error instanceof Failure) {
    const senders = error.code === 'SERVER_BUSY' && error.message.includes('max_wal_senders')
    return senders ? new Failure('SLOT_LIMIT', { object, observed, cause: error }) : error
  }
  if (state === '53400' || (state === '55000' && observed.includes('max_replication_slots'))) {
    return new Failure('SLOT_LIMIT', { object, observed, cause: error })
  }
  if (state === '42710') return new Failure('SLOT_IN_USE', { object, observed, cause: error })
  if (state === '55000' && observed.includes('wal_level')) {
    return new Failure('SOURCE_SETTING', { object, observed, next: 'Set wal_level = logical and restart the source' })
  }
  return mapError(error, object)
}
