import { isDeepStrictEqual } from 'node:util'
import type { Snapshot } from '../../src/connector.ts'
import type { StateStore } from '../../src/coordinate/state-store.ts'
import { Failure } from '../../src/errors.ts'
import type { TableSchema } from '../../src/model.ts'
import { adoptFirst, releaseAll, retainFirst, retainMore, type Place } from './retain.ts'
import { checkPublication, checkTables, loadRetained, saveRetained, type Retained } from './retained.ts'
import { sourceObjects, type SourceObjects } from './source-objects.ts'
import type { Shape } from './source-queries.ts'
import { withShapes, type Version } from './version.ts'

/** What the source keeps for a pipeline, slot and publication, and the record of it in the state store: made, checked, changed, undone. What reads and
 *  writes the record runs one after the other. */
export interface Retention extends Pick<SourceObjects, 'slot' | 'shapes' | 'digest'> {
  /** The record as it stands in the store; several sources of one pipeline share it. */
  readonly load: (signal: AbortSignal) => Promise<Retained | undefined>
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
/** Of what others may do to publication and tables, a check costs at most a twentieth of the time. */
const checkEveryMs = 1_000

export function openRetention(
  state: StateStore,
  { control, config, context, name, serverVersion, snapshotLimitMs }: Omit<Place, 'objects' | 'record'>,
): Retention {
  const objects = sourceObjects(control, config, name, serverVersion)
  const place = { control, config, context, name, serverVersion, snapshotLimitMs, objects, record }
  let recorded: Retained | undefined
  let revision = 0
  /** Of what was found as recorded. */
  let digest: string | undefined
  let nextCheck = 0
  let turn: Promise<unknown> = Promise.resolve()

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
    recorded = made.state === 'released' ? undefined : made
    digest = undefined
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

  async function check(signal: AbortSignal): Promise<void> {
    const began = performance.now()
    const now = await objects.digest(signal)
    nextCheck = performance.now() + Math.max(checkEveryMs, 20 * (performance.now() - began))
    if (now !== undefined && now === digest) return
    const row = await objects.publication(signal)
    const before = await load(signal)
    if (before?.state !== 'made') return
    await objects.demandThere(before.publication.relations, row, signal)
    checkPublication(name, before.publication, row, new Set(before.adding))
    if (before.adding.length > 0) return
    if (row && !isDeepStrictEqual(row, before.publication)) {
      const after = checkTables(before, row, (await objects.shapes(signal)).tables)
      // Lost to another source of this pipeline: looked at again the next time.
      if (!isDeepStrictEqual(after, before) && !(await recordUnlessLost(after, signal))) return
    }
    digest = now
  }
  async function addVersions(fresh: readonly Version[], signal: AbortSignal): Promise<readonly Version[]> {
    for (;;) {
      const before = await load(signal)
      if (before?.state !== 'made')
        throw new Failure('FENCED', { object: `publication ${name}`, observed: 'it was released' })
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

  return {
    slot: objects.slot,
    shapes: objects.shapes,
    digest: objects.digest,
    load: (signal) => inTurn(async () => await load(signal)),
    retain: (tables, signal) =>
      inTurn(async () => {
        const before = await load(signal)
        if (before?.state !== 'made') return await retainFirst(place, before, tables, signal)
        await retainMore(place, before, tables, signal)
        return undefined
      }),
    adopt: (tables, startAt, signal) =>
      inTurn(async () => {
        const before = await load(signal)
        if (before?.state === 'made') await retainMore(place, before, tables, signal)
        else await adoptFirst(place, tables, startAt, signal)
      }),
    release: (signal) =>
      inTurn(async () => {
        const former = await load(signal)
        if (former) await releaseAll(place, former, signal)
      }),
    check: (signal) =>
      inTurn(async () => {
        await check(signal)
        return recorded
      }),
    async checkNowAndThen(signal) {
      if (performance.now() < nextCheck) return
      await inTurn(async () => {
        if (performance.now() >= nextCheck) await check(signal)
      })
    },
    keepShapes: (shapes, signal) =>
      inTurn(async () => {
        const before = await load(signal)
        if (before?.state !== 'made') return
        await recordUnlessLost({ ...before, versions: withShapes(before.versions, shapes) }, signal)
      }),
    addVersions: (fresh, signal) => inTurn(async () => await addVersions(fresh, signal)),
    setTimeline: (made, timeline, signal) =>
      inTurn(async () => await record({ ...((await load(signal)) ?? made), timeline }, signal)),
  }
}
