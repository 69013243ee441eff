import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { Failure } from '../../src/errors.ts'
import { failpoint } from '../../src/failpoint.ts'
import {
  compareMarks,
  comparePositions,
  origin,
  tableName,
  type Mark,
  type Position,
  type TableSchema,
} from '../../src/model.ts'
import type { Relation } from './pgoutput.ts'
import { parseLsn, positionOf } from './position.ts'
import { loosened, mistakable, shapeBetween } from './shape-between.ts'
import { keyOf, relationDifference, type SentColumn } from './shape.ts'
import type { Shape, Shapes } from './source-queries.ts'
import { changesBetween } from './changes-between.ts'
import { unfollowable } from './unfollowable.ts'
import { changed, nextVersions, notRecorded, type Left, type SchemaEffect, type Version } from './version.ts'
import { isOpen } from './visibility.ts'

/** What the tables of a stream are, at each place of it. Places are asked for in their order. `undefined`: `settle`, then ask again. */
export interface Tables {
  left(oid: number): Left | undefined
  /** Changes of the table are recorded for places to come: each of its rows is to be asked for. */
  ahead(oid: number): boolean
  /** For the row at this mark: its table's schema, or a change that takes effect before it and takes up the mark, or why its changes cannot be taken. */
  at(relation: Relation, mark: Mark, xid: number): TableSchema | SchemaEffect | Failure | undefined
  /** At a message of our own: changes that take effect there; of tables, too, that no row tells of. */
  passing(position: Position): readonly { readonly effect: SchemaEffect; readonly mark: Mark }[] | undefined
  /** Looks at the catalog, and records what follows for the place asked for last. */
  settle(signal: AbortSignal): Promise<void>
}

export type HistoryOptions = {
  /** Of each table at least one, oldest first. */
  readonly versions: readonly Version[]
  readonly left: readonly Left[]
  /** Changes up to here were handed on. */
  readonly after: Position
  /** A look taken when the stream begins. */
  readonly looked: Shapes
  /** At all tables, or at `only` that one. */
  readonly look: (signal: AbortSignal, only?: number) => Promise<Shapes>
  /** Records how tables that were not changed are now; may fail, and is then done another time. */
  readonly keep: (shapes: readonly Shape[]) => Promise<void>
  readonly typeName: (type: number, typmod: number) => Promise<string>
  /** Another one whenever a look may show something else. */
  readonly digest: () => Promise<string | undefined>
  /** Adds them to the record, if each is the next of its table; resolves to what is recorded then. */
  readonly record: (versions: readonly Version[]) => Promise<readonly Version[]>
}

type Table = {
  versions: readonly Version[]
  /** Index of the version in force where the stream stands. */
  at: number
  /** The newest version as last seen unchanged, at a place the stream has passed: what was done since is told by it. */
  base: Shape
  failure: Failure | undefined
}
type Wanted =
  | { readonly relation: Relation; readonly mark: Mark; readonly xid: number }
  | { readonly message: Position }

const retryMs = 50
const lookEveryMs = 1_000

export function tableHistory(options: HistoryOptions): Tables {
  return new TableHistory(options)
}

class TableHistory implements Tables {
  readonly #options: HistoryOptions
  readonly #tables = new Map<number, Table>()
  #looked: Shapes
  #shapes = new Map<number, Shape>()
  /** What a newer look at one table saw, which showed it as before: among thousands of tables not each row of another one costs a look at all. */
  readonly #newer = new Map<number, Shapes['transactions']>()
  /** Tables that the last look shows changed since their newest version, all of whose versions are in force. */
  #differing: readonly number[] = []
  /** Tables that it shows touched, and not changed: known so from the place on that the look saw. */
  readonly #steady = new Map<number, Shape>()
  /** Tables to be recorded as they were seen last. */
  readonly #keeping = new Map<number, Shape>()
  #wanted: Wanted | undefined
  /** A transaction that is not visible yet, and whose rows of this table look as before. */
  #waived = { oid: 0, xid: 0 }
  /** Of the last look that was taken for its sake. */
  #digest: string | undefined
  #looking = false
  #nextLook = 0

  constructor(options: HistoryOptions) {
    this.#options = options
    this.#looked = options.looked
    this.#adopt(options.versions, options.after)
    this.#see(options.looked)
  }

  left(oid: number): Left | undefined {
    return this.#options.left.find((one) => one.oid === oid)
  }

  ahead(oid: number): boolean {
    const table = this.#tables.get(oid)
    return table !== undefined && following(table) !== undefined
  }

  at(relation: Relation, mark: Mark, xid: number): ReturnType<Tables['at']> {
    const table = this.#tables.get(relation.oid)
    if (table === undefined) return notRecorded(relation)
    if (table.failure) return table.failure
    const next = following(table)
    if (next !== undefined && compareMarks(next.from, mark) <= 0) return this.#enter(table, next, mark)
    const current = inForce(table)
    const seen = this.#newer.get(relation.oid) ?? this.#looked.transactions
    if (!isOpen(xid, seen) || (this.#waived.oid === relation.oid && this.#waived.xid === xid)) {
      const now = this.#shapes.get(relation.oid)
      const why = now && unfollowable(table.base, now, keyOf(current.schema, current.shape))
      if (why !== undefined) return changed(current, why, now)
      if (relationDifference(relation, current.shape) === undefined) {
        if (now === undefined || following(table) !== undefined) return current.schema
        const doubt = mistakable(relation, { before: table.base, now, xid })
        if (doubt !== undefined) return changed(current, doubt, now)
        if (loosened(table.base, now) === undefined) return current.schema
      }
    }
    this.#wanted = { relation, mark, xid }
    return undefined
  }

  passing(position: Position): readonly { readonly effect: SchemaEffect; readonly mark: Mark }[] | undefined {
    if (comparePositions(positionOf(parseLsn(this.#looked.lsn)), position) <= 0) {
      if (this.#differing.length > 0) {
        this.#wanted = { message: position }
        return undefined
      }
      for (const [oid, shape] of this.#steady) {
        const table = this.#tables.get(oid)
        if (table) table.base = shape
        this.#keeping.set(oid, shape)
      }
      this.#steady.clear()
    }
    void this.#lookSoon()
    const found: { effect: SchemaEffect; mark: Mark }[] = []
    for (const table of this.#tables.values()) {
      for (let next = following(table); next && comparePositions(next.from.position, position) <= 0;) {
        const effect = this.#enter(table, next, { position, seq: next.from.seq })
        if (effect instanceof Failure) throw effect
        found.push({ effect, mark: next.from })
        next = following(table)
      }
    }
    return found.toSorted((a, b) => a.mark.seq - b.mark.seq)
  }

  async settle(signal: AbortSignal): Promise<void> {
    const wanted = this.#wanted
    if (wanted === undefined) return
    this.#wanted = undefined
    if ('message' in wanted) return await this.#settleMessage(wanted.message, signal)
    const { relation, mark, xid } = wanted
    const table = this.#tables.get(relation.oid)
    if (table === undefined) return
    for (;;) {
      let looked = await this.#options.look(signal, relation.oid)
      const [now] = looked.tables
      if (now !== undefined && isDeepStrictEqual(now, this.#shapes.get(relation.oid)))
        this.#newer.set(relation.oid, looked.transactions)
      else this.#see((looked = await this.#options.look(signal)))
      if (!isOpen(xid, looked.transactions)) break
      // Committed in the log, and not visible yet: it waits for a standby. What others did to the table before is.
      if (relationDifference(relation, inForce(table).shape) === undefined) {
        this.#waived = { oid: relation.oid, xid }
        break
      }
      await sleep(retryMs, undefined, { signal })
    }
    await this.#settleRow(table, relation, mark, xid)
  }

  async #settleRow(table: Table, relation: Relation, mark: Mark, xid: number): Promise<void> {
    const now = this.#shapes.get(relation.oid)
    const current = inForce(table)
    const key = keyOf(current.schema, current.shape)
    const same = relationDifference(relation, current.shape) === undefined
    if (now === undefined) {
      if (!same) table.failure = changed(current, 'it was changed, and is no longer there', undefined)
      return
    }
    if (unfollowable(table.base, now, key) !== undefined) return
    if (same) {
      const known =
        following(table) !== undefined || mistakable(relation, { before: table.base, now, xid }) !== undefined
      const shape = known ? undefined : loosened(table.base, now)
      if (shape) await this.#record([{ table, shape, mark, rewritten: false }])
      return
    }
    const print = ({ typeOid, typmod }: SentColumn): string => `${typeOid} ${typmod}`
    const types = new Map<string, string>()
    for (const column of relation.columns)
      if (!types.has(print(column)))
        types.set(print(column), await this.#options.typeName(column.typeOid, column.typmod))
    const shape =
      table.at + 1 < table.versions.length
        ? 'its changes came in another order when they came first'
        : shapeBetween(relation, { before: table.base, now, xid }, (sent) => types.get(print(sent)))
    const why =
      typeof shape === 'string' ? shape : (relationDifference(relation, shape) ?? unfollowable(table.base, shape, key))
    if (typeof shape === 'string' || why !== undefined) {
      table.failure = changed(current, why ?? '', now)
      return
    }
    await this.#record([{ table, shape, mark, rewritten: now.relfilenode !== table.base.relfilenode }])
  }

  /** Nothing was done to a table between two looks that show the same: what it is now it was at a place between them. */
  async #settleMessage(position: Position, signal: AbortSignal): Promise<void> {
    const before = this.#shapes
    const differing = this.#differing
    this.#see(await this.#options.look(signal))
    const steady = differing.flatMap((oid) => {
      const table = this.#tables.get(oid)
      const shape = this.#shapes.get(oid)
      if (!table || !shape || !this.#differing.includes(oid)) return []
      return isDeepStrictEqual(shape, before.get(oid)) ? [{ table, shape }] : []
    })
    if (steady.length === 0) return
    await this.#record(
      steady.map(({ table, shape }) => {
        const rewritten = shape.relfilenode !== table.base.relfilenode
        return { table, shape, mark: { position, seq: 0 }, rewritten }
      }),
    )
  }

  async #record(
    all: readonly {
      readonly table: Table
      readonly shape: Shape
      readonly mark: Mark
      readonly rewritten: boolean
    }[],
  ): Promise<void> {
    failpoint('ddl.before-record')
    const versions = nextVersions(
      all.map(({ table, ...found }) => ({ ...found, former: inForce(table), base: table.base })),
    )
    this.#adopt(await this.#options.record(versions), undefined)
    failpoint('ddl.after-record')
    this.#see(this.#looked)
  }

  /** `after`: where the stream begins; undefined: it goes on. */
  #adopt(versions: readonly Version[], after: Position | undefined): void {
    for (const [oid, own] of Map.groupBy(versions, (version) => version.oid)) {
      const known = this.#tables.get(oid)
      if (known !== undefined && known.versions.length === own.length) continue
      const base = own.at(-1)?.shape
      if (base === undefined) continue
      const at = known?.at ?? own.findLastIndex(({ from }) => comparePositions(from.position, after ?? origin) <= 0)
      this.#tables.set(oid, { versions: own, at: Math.max(0, at), base, failure: undefined })
    }
  }

  #see(looked: Shapes): void {
    this.#looked = looked
    this.#newer.clear()
    this.#shapes = new Map(looked.tables.map((shape) => [shape.oid, shape]))
    this.#steady.clear()
    this.#differing = [...this.#tables].flatMap(([oid, table]) => {
      const now = this.#shapes.get(oid)
      const newest = table.versions.at(-1)
      if (!now || !newest || now.kind === 'p') return []
      if (unfollowable(table.base, now, keyOf(newest.schema, newest.shape)) !== undefined) return []
      if (changesBetween(table.base, now).length > 0) return table.at + 1 === table.versions.length ? [oid] : []
      if (!isDeepStrictEqual(table.base, now)) this.#steady.set(oid, now)
      return []
    })
  }

  async #lookSoon(): Promise<void> {
    if (this.#looking || performance.now() < this.#nextLook) return
    this.#looking = true
    try {
      await this.#keep().catch(() => {}) // tried again the next time
      const digest = await this.#options.digest()
      if (digest === this.#digest) return
      this.#see(await this.#options.look(new AbortController().signal))
      this.#digest = digest
    } catch {
      // Whatever it is, the stream or the heartbeat will meet it.
    } finally {
      this.#nextLook = performance.now() + lookEveryMs
      this.#looking = false
    }
  }

  async #keep(): Promise<void> {
    const keeping = new Map(this.#keeping)
    if (keeping.size === 0) return
    await this.#options.keep([...keeping.values()])
    for (const [oid, shape] of keeping) if (this.#keeping.get(oid) === shape) this.#keeping.delete(oid)
  }

  #enter(table: Table, next: Version, mark: Mark): SchemaEffect | Failure {
    if (compareMarks(next.from, mark) !== 0) {
      const observed = `its change recorded for ${next.from.position} ${next.from.seq} comes at ${mark.position} ${mark.seq}`
      return new Failure('BUG', { object: tableName(next.schema.table), observed })
    }
    table.at++
    this.#see(this.#looked)
    return { kind: 'schema', schema: next.schema, changes: next.changes }
  }
}

function inForce(table: Table): Version {
  const version = table.versions[table.at]
  if (version === undefined) throw new RangeError('a table without a version')
  return version
}

function following({ versions, at }: Table): Version | undefined {
  return versions[at + 1]
}
