import { isDeepStrictEqual } from 'node:util'
import type pg from 'pg'
import type { Context, Snapshot } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import { failpoint } from '../../src/failpoint.ts'
import { tableName, type TableSchema } from '../../src/model.ts'
import { ask } from './answer.ts'
import { close, connect, type PostgresConfig } from './config.ts'
import { parseLsn, positionOf } from './position.ts'
import {
  checkPublication,
  checkTables,
  demandSame,
  firstVersions,
  leaving,
  leftOut,
  serves,
  type Retained,
} from './retained.ts'
import { freeSlot, openSlot } from './slots.ts'
import type { SourceObjects } from './source-objects.ts'
import {
  addToPublication,
  createPublication,
  dropPublication,
  dropSlot,
  identifySystem,
  selectSlot,
  takeFromPublication,
  type System,
} from './source-queries.ts'
import { checkStart } from './start.ts'
import type { Left } from './version.ts'

export type Place = {
  readonly control: pg.Client
  readonly config: PostgresConfig
  readonly context: Context
  /** Of slot and publication. */
  readonly name: string
  readonly serverVersion: number
  readonly objects: SourceObjects
  /** Over the revision that was read last. FENCED if somebody wrote since. */
  readonly record: (made: Retained, signal: AbortSignal) => Promise<void>
  /** How long a new slot waits for open transactions. */
  readonly snapshotLimitMs: number
}
/** How long a former holder of the slot is given to let go. */
export const takeOverMs = 15_000

/** Makes publication and slot. `former`: what an attempt that came to nothing recorded. */
export async function retainFirst(
  place: Place,
  former: Retained | undefined,
  tables: readonly TableSchema[],
  signal: AbortSignal,
): Promise<Snapshot> {
  const { control, config, name, serverVersion, objects, record } = place
  const { pipeline } = place.context
  const [object, publication] = [`slot ${name}`, `publication ${name}`]
  const slot = await ask(selectSlot(control, name), signal, object)
  const existing = await objects.publication(signal)
  const plain = tables.map(({ table }) => table)
  const ids = await objects.withRoots(plain, signal)
  // Where our role may not make it, the operator did, as the preflight said.
  const given = existing !== undefined && serves(existing, plain, ids)
  if (!former && (slot || (existing && !given))) {
    throw new Failure('SLOT_IN_USE', {
      object: slot ? object : publication,
      observed: 'it exists, and this pipeline did not make it',
      next: `If nothing needs it, drop it: ${slot ? `select pg_drop_replication_slot('${name}')` : `drop publication ${name}`}; or choose another pipeline name; or, where the target holds the data as of its place, take it over by mode: incremental with startAt`,
    })
  }
  const nothing = { oid: 0, options: '', version: '', relations: [] }
  const none = { systemId: '', timeline: 0, database: config.database, consistentPoint: '', publication: nothing }
  await record({ ...none, adding: [], versions: [], state: 'making' }, signal)
  failpoint('retain.after-intent')
  if (slot) {
    await freeSlot(control, pipeline, name, performance.now() + takeOverMs, signal)
    await ask(dropSlot(control, name), signal, object)
  }
  // H9: a slot older than its publication cannot be decoded.
  if (existing && !given) await ask(dropPublication(control, name), signal, publication)
  if (!given) await ask(createPublication(control, name, ids), signal, publication)
  failpoint('retain.between-publication-and-slot')
  const before = await objects.shapes(signal)
  const wanted = { config, pipeline, slot: name, temporary: false, serverVersion }
  const made = openSlot(control, { ...wanted, limitMs: place.snapshotLimitMs }, signal)
  // The next attempt drops what is left.
  const undo = async (): Promise<void> => {
    if (!given) await dropPublication(control, name).catch(() => {})
  }
  const { system, consistentPoint, snapshot } = await made.catch(async (error: unknown) => {
    await undo()
    throw error
  })
  let recording = false
  try {
    const row = await objects.published(signal)
    const looked = await objects.shapes(signal)
    demandSame(before.tables, looked.tables)
    const versions = firstVersions([], tables, looked.tables)
    failpoint('retain.between-snapshot-and-record')
    recording = true
    await record(
      {
        ...system,
        state: 'made',
        consistentPoint: positionOf(consistentPoint),
        publication: row,
        adding: [],
        versions,
      },
      signal,
    )
    failpoint('retain.after-record')
    return snapshot
  } catch (error) {
    await snapshot[Symbol.asyncDispose]()
    // What may be recorded is found by the next start; where we were told to end, a successor may have made its own by now.
    if (!recording && !signal.aborted) {
      await dropSlot(control, name).catch(() => {})
      await undo()
    }
    throw error
  }
}

/** The slot and publication that the operator made, as the preflight demands them. */
export async function adoptFirst(
  place: Place,
  tables: readonly TableSchema[],
  startAt: string,
  signal: AbortSignal,
): Promise<void> {
  const { control, config, name, serverVersion, objects, record } = place
  const { pipeline } = place.context
  const { confirmed_flush_lsn: confirmed } = await objects.slot(signal)
  const plain = tables.map(({ table }) => table)
  const before = await objects.shapes(signal)
  const [finding] = await ask(checkStart(control, name, plain, startAt, serverVersion), signal)
  if (finding === undefined || finding.level === 'blocker' || confirmed === null) {
    const { observed = 'no place', needed = startAt, remedy } = finding ?? {}
    throw new Failure('SLOT_LOST', { object: `slot ${name}`, observed, needed, ...(remedy && { next: remedy }) })
  }
  await freeSlot(control, pipeline, name, performance.now() + takeOverMs, signal)
  const sender = await connect(config, { name: 'slot', pipeline, replication: true }, signal)
  let system: System
  try {
    system = await identifySystem(sender)
  } finally {
    await close(sender)
  }
  const row = await objects.published(signal)
  const looked = await objects.shapes(signal)
  demandSame(before.tables, looked.tables)
  const versions = firstVersions([], tables, looked.tables)
  const consistentPoint = positionOf(parseLsn(confirmed))
  await record({ ...system, state: 'made', consistentPoint, publication: row, adding: [], versions }, signal)
}

/** Adds what is missing, and leaves out what is not named any more. */
export async function retainMore(
  { control, name, objects, record }: Place,
  before: Retained,
  tables: readonly TableSchema[],
  signal: AbortSignal,
): Promise<void> {
  await objects.slot(signal)
  const ids = await objects.withRoots(
    tables.map(({ table }) => table),
    signal,
  )
  const unwanted = leaving(before.publication.relations, ids)
  const out = new Set(unwanted.map(({ oid }) => oid))
  const kept = before.publication.relations.filter(({ oid }) => !out.has(oid))
  const left: readonly Left[] = [
    ...(before.left ?? []).filter(({ oid }) => !out.has(oid)),
    ...unwanted.map(({ oid }) => leftOut(before, oid)),
  ]
  const now = await objects.published(signal)
  // Also those that a former start had no time to take out.
  const going = now.relations.filter(({ oid }) => left.some((one) => one.oid === oid && one.until === undefined))
  await objects.demandThere(kept, now, signal)
  checkPublication(name, { ...before.publication, relations: kept }, now, new Set([...ids, ...going].map(tableName)))
  const goes = new Set(going.map(({ oid }) => oid))
  const there = new Set(now.relations.filter(({ oid }) => !goes.has(oid)).map(tableName))
  const missing = ids.filter((table) => !there.has(tableName(table)))
  const altered = missing.length + going.length > 0
  if (altered || unwanted.length > 0) {
    // Said first: another source of this pipeline may look in between.
    const publication = { ...before.publication, relations: kept }
    await record({ ...before, publication, left, adding: [...missing, ...going].map(tableName) }, signal)
  }
  if (going.length > 0) await ask(takeFromPublication(control, name, going), signal, `publication ${name}`)
  if (missing.length > 0) await ask(addToPublication(control, name, missing), signal, `publication ${name}`)
  const after = altered ? await objects.published(signal) : now
  // Before `until`: whatever is done to a table behind it is then seen to be a change.
  const looked = await objects.shapes(signal)
  // A table that was left out has no history: it comes back as it is.
  const followed = before.versions.filter(({ oid }) => !left.some((one) => one.oid === oid && one.until === undefined))
  const versions = firstVersions(followed, tables, looked.tables)
  // Their copies are read later than this: changes up to here are passed over, whatever shape they have.
  const until = positionOf(parseLsn((await objects.slot(signal)).insert_lsn))
  const back = new Set(after.relations.map(({ oid }) => oid))
  const since = left.map((one) => (one.until === undefined && back.has(one.oid) ? { ...one, until } : one))
  const base = altered ? after : { ...before.publication, relations: kept }
  const whole = { ...before, publication: base, left: since, adding: [], versions }
  const checked = checkTables(whole, after, looked.tables)
  if (!isDeepStrictEqual(checked, before)) await record(checked, signal)
}

/** Undoes what was retained. */
export async function releaseAll(place: Place, former: Retained, signal: AbortSignal): Promise<void> {
  const { control, context, name, record } = place
  await freeSlot(control, context.pipeline, name, performance.now() + takeOverMs, signal)
  await ask(dropSlot(control, name), signal, `slot ${name}`)
  failpoint('release.between-slot-and-publication')
  await ask(dropPublication(control, name), signal, `publication ${name}`).catch((error: unknown) => {
    if (!(error instanceof Failure) || error.code !== 'NO_RIGHTS') throw error
    context.log.info({ publication: name }, 'the publication is left to its owner')
  })
  failpoint('release.between-publication-and-record')
  await record({ ...former, state: 'released' }, signal)
}
