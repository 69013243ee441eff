import { failpoint } from '../../src/failpoint.ts'
import type pg from 'pg'
import type { Context, Snapshot } from '../../src/connector.ts'
import type { StateStore } from '../../src/coordinate/state-store.ts'
import { Failure } from '../../src/errors.ts'
import { tableName, type TableId, type TableSchema } from '../../src/model.ts'
import { ask } from './answer.ts'
import { close, connect, type PostgresConfig } from './config.ts'
import { parseLsn, positionOf } from './position.ts'
import {
  checkPublication,
  checkTables,
  firstVersions,
  leaving,
  leftOut,
  loadRetained,
  saveRetained,
  serves,
  withRoots,
  type Retained,
} from './retained.ts'
import { withShapes, type Left, type Version } from './version.ts'
import { freeSlot, openSlot } from './slots.ts'
import {
  addToPublication,
  createPublication,
  dropPublication,
  dropSlot,
  identifySystem,
  selectDropped,
  selectPublication,
  selectPublicationDigest,
  selectRoots,
  selectShapes,
  selectSlot,
  takeFromPublication,
  type PublicationRow,
  type PublishedRow,
  type Shape,
  type Shapes,
  type SlotRow,
  type System,
} from './source-queries.ts'
import { checkStart } from './start.ts'

/** What the source keeps for a pipeline, slot and publication, and the record of it in the state store: made, checked, changed, undone. What reads and
 *  writes the record runs one after the other. */
export interface Retention {
  /** The record as it stands in the store; several sources of one pipeline share it. */
  readonly load: (signal: AbortSignal) => Promise<Retained | undefined>
  readonly slot: (signal: AbortSignal) => Promise<SlotRow>
  /** A look at all published tables, or at `only` that one. */
  readonly shapes: (signal: AbortSignal, only?: number) => Promise<Shapes>
  /** Another one whenever others changed publication or tables. */
  readonly digest: (signal: AbortSignal) => Promise<string | undefined>
  readonly retain: (tables: readonly TableSchema[], signal: AbortSignal) => Promise<Snapshot | undefined>
  readonly adopt: (tables: readonly TableSchema[], startAt: string, signal: AbortSignal) => Promise<void>
  readonly release: (signal: AbortSignal) => Promise<void>
  /** H13, H26: what others did to publication and tables since the record was written. Resolves to the record as it stands then. */
  readonly check: (signal: AbortSignal) => Promise<Retained | undefined>
  /** `check`, unless one was a moment ago. */
  readonly checkNowAndThen: (signal: AbortSignal) => Promise<void>
  /** New versions of tables, unless others recorded them first: the same history is found by whoever reads the same stream. Resolves to all. */
  readonly addVersions: (fresh: readonly Version[], signal: AbortSignal) => Promise<readonly Version[]>
  /** Tables as last seen, where that is no change. Lost if others write at the same time. */
  readonly keepShapes: (shapes: readonly Shape[], signal: AbortSignal) => Promise<void>
  readonly setTimeline: (made: Retained, timeline: number, signal: AbortSignal) => Promise<void>
}
type Place = {
  readonly control: pg.Client
  readonly config: PostgresConfig
  readonly context: Context
  readonly state: StateStore
  /** Of slot and publication. */
  readonly name: string
  readonly serverVersion: number
  /** How long a new slot waits for open transactions. */
  readonly snapshotLimitMs: number
}
/** How long a former holder of the slot is given to let go. */
export const takeOverMs = 15_000
/** Of what others may do to publication and tables, a check costs at most a twentieth of the time. */
const checkEveryMs = 1_000

export function openRetention({
  control,
  config,
  context,
  state,
  name,
  serverVersion,
  snapshotLimitMs,
}: Place): Retention {
  const { pipeline } = context
  const publication = `publication ${name}`
  let recorded: Retained | undefined
  let revision = 0
  let digest: string | undefined
  let nextCheck = 0
  let turn: Promise<unknown> = Promise.resolve()

  /** What reads and writes the record runs one after the other. */
  function inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = turn.then(work)
    turn = mine.catch(() => {})
    return mine
  }
  /** Several sources of one pipeline share the record: what is written is based on what was just read. */
  async function load(signal: AbortSignal): Promise<Retained | undefined> {
    const stored = await loadRetained(state, signal)
    revision = stored.revision
    recorded = stored.retained
    return recorded
  }
  async function record(made: Retained, signal: AbortSignal): Promise<void> {
    revision = await saveRetained(state, made, revision, signal)
    recorded = made
    digest = undefined
  }
  async function published(signal: AbortSignal): Promise<PublicationRow> {
    const row = await ask(selectPublication(control, name, serverVersion), signal, publication)
    if (!row) throw new Failure('PUBLICATION_CHANGED', { object: publication, observed: 'it was dropped' })
    return row
  }
  async function shapes(signal: AbortSignal, only?: number): Promise<Shapes> {
    return await ask(selectShapes(control, name, only), signal, publication)
  }
  async function digestNow(signal: AbortSignal): Promise<string | undefined> {
    return await ask(selectPublicationDigest(control, name, serverVersion), signal, publication)
  }
  async function ownSlot(signal: AbortSignal): Promise<SlotRow> {
    const row = await ask(selectSlot(control, name), signal, `slot ${name}`)
    const lost = (observed: string): Failure => new Failure('SLOT_LOST', { object: `slot ${name}`, observed })
    if (!row) throw lost('it does not exist')
    if (row.wal_status === 'lost')
      throw lost(`it was invalidated${row.invalidation_reason ? `: ${row.invalidation_reason}` : ''}`)
    if (row.database !== config.database || row.plugin !== 'pgoutput') {
      throw lost(`it is one of ${row.plugin} in database ${row.database}`)
    }
    return row
  }
  async function withTheirRoots(tables: readonly TableId[], signal: AbortSignal): Promise<readonly TableId[]> {
    return withRoots(tables, await ask(selectRoots(control, tables), signal))
  }

  /** H13, H26: what others did to publication and tables since the record was written. */
  async function checkRetained(signal: AbortSignal): Promise<void> {
    const began = performance.now()
    const now = await digestNow(signal)
    nextCheck = performance.now() + Math.max(checkEveryMs, 20 * (performance.now() - began))
    if (now !== undefined && now === digest) return
    const row = await ask(selectPublication(control, name, serverVersion), signal, publication)
    const before = await load(signal)
    if (before?.state !== 'made') return
    await demandThere(before.publication.relations, row, signal)
    checkPublication(name, before.publication, row, new Set(before.adding))
    if (before.adding.length > 0) return
    if (row && JSON.stringify(row) !== JSON.stringify(before.publication)) {
      const after = checkTables(before, row, (await shapes(signal)).tables)
      // Lost to another source of this pipeline: looked at again the next time.
      if (JSON.stringify(after) !== JSON.stringify(before) && !(await recordUnlessLost(after, signal))) return
    }
    digest = now
  }
  async function recordUnlessLost(made: Retained, signal: AbortSignal): Promise<boolean> {
    try {
      await record(made, signal)
      return true
    } catch (error) {
      if (error instanceof Failure && error.code === 'FENCED') return false
      throw error
    }
  }
  /** New versions of tables, unless others recorded them first: the same history is found by whoever reads the same stream. */
  async function recordVersions(fresh: readonly Version[], signal: AbortSignal): Promise<readonly Version[]> {
    for (;;) {
      const before = await load(signal)
      if (before?.state !== 'made') throw new Failure('FENCED', { object: publication, observed: 'it was released' })
      const known = new Map(before.versions.map((version) => [version.oid, version.schema.version]))
      const next = fresh.filter(({ oid, schema }) => {
        if (schema.version !== (known.get(oid) ?? 0) + 1) return false
        known.set(oid, schema.version)
        return true
      })
      const versions = [...before.versions, ...next]
      if (next.length === 0 || (await recordUnlessLost({ ...before, versions }, signal))) return versions
    }
  }
  async function retainFirst(tables: readonly TableSchema[], signal: AbortSignal): Promise<Snapshot> {
    const object = `slot ${name}`
    const former = recorded
    const slot = await ask(selectSlot(control, name), signal, object)
    const existing = await ask(selectPublication(control, name, serverVersion), signal, publication)
    const plain = tables.map(({ table }) => table)
    const ids = await withTheirRoots(plain, signal)
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
    const wanted = { config, pipeline, slot: name, temporary: false, serverVersion }
    const made = openSlot(control, { ...wanted, limitMs: snapshotLimitMs }, signal)
    const { system, consistentPoint, snapshot } = await made.catch(async (error: unknown) => {
      if (!given) await dropPublication(control, name).catch(() => {}) // the next attempt drops what is left
      throw error
    })
    try {
      const row = await published(signal)
      const versions = firstVersions([], tables, (await shapes(signal)).tables)
      const place = positionOf(consistentPoint)
      failpoint('retain.between-snapshot-and-record')
      await record({ ...system, state: 'made', consistentPoint: place, publication: row, adding: [], versions }, signal)
      failpoint('retain.after-record')
      return snapshot
    } catch (error) {
      await snapshot[Symbol.asyncDispose]()
      throw error
    }
  }

  /** The slot and publication that the operator made, as the preflight demands them. */
  async function adoptFirst(tables: readonly TableSchema[], startAt: string, signal: AbortSignal): Promise<void> {
    const { confirmed_flush_lsn: confirmed } = await ownSlot(signal)
    const plain = tables.map(({ table }) => table)
    const finding = (await ask(checkStart(control, name, plain, startAt, serverVersion), signal)).at(-1)
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
    const row = await published(signal)
    const versions = firstVersions([], tables, (await shapes(signal)).tables)
    const consistentPoint = positionOf(parseLsn(confirmed))
    await record({ ...system, state: 'made', consistentPoint, publication: row, adding: [], versions }, signal)
  }

  async function retainMore(before: Retained, tables: readonly TableSchema[], signal: AbortSignal): Promise<void> {
    await ownSlot(signal)
    const ids = await withTheirRoots(
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
    const now = await published(signal)
    // Also those that a former start had no time to take out.
    const going = now.relations.filter(({ oid }) => left.some((one) => one.oid === oid && one.until === undefined))
    await demandThere(kept, now, signal)
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
    if (going.length > 0) await ask(takeFromPublication(control, name, going), signal, publication)
    if (missing.length > 0) await ask(addToPublication(control, name, missing), signal, publication)
    const after = altered ? await published(signal) : now
    const looked = await shapes(signal)
    // A table that was left out has no history: it comes back as it is.
    const followed = before.versions.filter(
      ({ oid }) => !left.some((one) => one.oid === oid && one.until === undefined),
    )
    const versions = firstVersions(followed, tables, looked.tables)
    // Their copies are read later than this: changes up to here are passed over, whatever shape they have.
    const until = positionOf(parseLsn((await ownSlot(signal)).insert_lsn))
    const back = new Set(after.relations.map(({ oid }) => oid))
    const since = left.map((one) => (one.until === undefined && back.has(one.oid) ? { ...one, until } : one))
    const base = altered ? after : { ...before.publication, relations: kept }
    const whole = { ...before, publication: base, left: since, adding: [], versions }
    const checked = checkTables(whole, after, looked.tables)
    if (JSON.stringify(checked) !== JSON.stringify(before)) await record(checked, signal)
  }

  /** A table that is gone is said to be gone, not only to be missing from the publication. */
  async function demandThere(
    tables: readonly PublishedRow[],
    now: PublicationRow | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const published = new Set(now?.relations.map(({ oid }) => oid))
    const missing = tables.filter(({ oid }) => !published.has(oid))
    if (missing.length === 0) return
    const dropped = await ask(
      selectDropped(
        control,
        missing.map(({ oid }) => oid),
      ),
      signal,
    )
    const gone = missing.filter(({ oid }) => dropped.includes(oid)).map(tableName)
    if (gone.length > 0)
      throw new Failure('TABLE_MISSING', {
        object: gone.join(', '),
        observed: 'dropped at the source',
        needed: 'every table the pipeline began with',
        effect: 'nothing more is captured',
        next: 'To go on without it, name it under tables.exclude and start again; one made anew under its name can be taken in after that',
      })
  }

  return {
    load: (signal) => inTurn(async () => await load(signal)),
    slot: ownSlot,
    shapes,
    digest: digestNow,
    retain: (tables, signal) =>
      inTurn(async () => {
        const before = await load(signal)
        if (before?.state !== 'made') return await retainFirst(tables, signal)
        await retainMore(before, tables, signal)
        return undefined
      }),
    adopt: (tables, startAt, signal) =>
      inTurn(async () => {
        const before = await load(signal)
        if (before?.state === 'made') await retainMore(before, tables, signal)
        else await adoptFirst(tables, startAt, signal)
      }),
    release: (signal) =>
      inTurn(async () => {
        const former = await load(signal)
        if (!former) return
        await freeSlot(control, pipeline, name, performance.now() + takeOverMs, signal)
        await ask(dropSlot(control, name), signal, `slot ${name}`)
        failpoint('release.between-slot-and-publication')
        await ask(dropPublication(control, name), signal, publication).catch((error: unknown) => {
          if (!(error instanceof Failure) || error.code !== 'NO_RIGHTS') throw error
          context.log.info({ publication: name }, 'the publication is left to its owner')
        })
        failpoint('release.between-publication-and-record')
        await record({ ...former, state: 'released' }, signal)
        recorded = undefined
      }),
    check: (signal) =>
      inTurn(async () => {
        await checkRetained(signal)
        return recorded
      }),
    async checkNowAndThen(signal) {
      if (performance.now() < nextCheck) return
      await inTurn(async () => {
        if (performance.now() >= nextCheck) await checkRetained(signal)
      })
    },
    keepShapes: (shapes, signal) =>
      inTurn(async () => {
        const before = await load(signal)
        if (before?.state !== 'made') return
        await recordUnlessLost({ ...before, versions: withShapes(before.versions, shapes) }, signal)
      }),
    addVersions: (fresh, signal) => inTurn(async () => await recordVersions(fresh, signal)),
    setTimeline: (made, timeline, signal) =>
      inTurn(async () => await record({ ...((await load(signal)) ?? made), timeline }, signal)),
  }
}
