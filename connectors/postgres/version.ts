import { Failure } from '../../src/errors.ts'
import {
  compareMarks,
  tableName,
  type Effect,
  type Mark,
  type Position,
  type TableChange,
  type TableSchema,
} from '../../src/model.ts'
import { addressed, wordsFor } from './alter.ts'
import type { Relation } from './pgoutput.ts'
import type { Shape } from './source-queries.ts'
import { changesBetween, nextSchema, stepsBetween } from './changes-between.ts'

/** A table's definition from a place on; recorded before anything behind that place is handed on, so that a re-sent transaction meets the same. */
export type Version = {
  readonly oid: number
  readonly from: Mark
  readonly schema: TableSchema
  readonly shape: Shape
  /** Since the version before. */
  readonly changes: readonly TableChange[]
}
export type SchemaEffect = Extract<Effect, { kind: 'schema' }>

/** A table that was left out: its rows are passed over, up to `until` if it was taken in again. */
export type Left = {
  readonly oid: number
  readonly until?: Position
  /** Of the changes it had when it was left out, in their order: each took a number of its transaction, and takes it when that is sent again. */
  readonly marks?: readonly Mark[]
}

/** A table that is another one from the mark on; as it was last seen before. `rewritten`: its rows may have been written anew meanwhile. */
type Found = {
  readonly former: Version
  readonly base: Shape
  readonly shape: Shape
  readonly mark: Mark
  readonly rewritten: boolean
}
/** Each at a mark of its own: what is found at one place stands there one after the other. */
export function nextVersions(found: readonly Found[]): readonly Version[] {
  const versions: Version[] = []
  for (const { former, base, shape, mark, rewritten } of found) {
    let [before, schema] = [base, former.schema]
    for (const step of stepsBetween(base, shape)) {
      const last = versions.at(-1)?.from
      const from = last !== undefined && compareMarks(last, mark) >= 0 ? { ...last, seq: last.seq + 4 } : mark
      schema = nextSchema(schema, before, step)
      const changes = changesBetween(before, step, rewritten)
      versions.push({ oid: former.oid, from, schema, shape: step, changes })
      before = step
    }
  }
  return versions
}

/** The newest versions as last seen unchanged. A shape that is of another version by now is left. */
export function withShapes(versions: readonly Version[], shapes: readonly Shape[]): readonly Version[] {
  const newest = new Map(versions.map((version) => [version.oid, version]))
  return versions.map((version) => {
    const shape = newest.get(version.oid) === version ? shapes.find(({ oid }) => oid === version.oid) : undefined
    return shape && changesBetween(version.shape, shape).length === 0 ? { ...version, shape } : version
  })
}

export function notRecorded({ table }: Relation): Failure {
  return new Failure('TABLE_CHANGED', {
    object: tableName(table),
    observed: 'it was not recorded: a partition or table added since',
    needed: 'the tables and partitions that were recorded when the pipeline began',
    effect: 'its changes are not captured, and nothing after them is',
    next: 'Undo the change, or name the table under tables.exclude, and start again',
  })
}

/** What the operator must know of a table that can be followed no further. */
export function changed({ schema, shape }: Version, why: string, now: Shape | undefined): Failure {
  const statements = now && now.kind !== 'p' ? addressed(schema.table, changesBetween(shape, now)) : []
  return new Failure('TABLE_CHANGED', {
    object: tableName(schema.table),
    observed: [why, ...(now ? wordsFor(changesBetween(shape, now)) : [])].join('; '),
    needed: 'changes whose place among the rows can be proved',
    effect: 'what came before is captured, nothing after it is; no row was written in a wrong shape',
    next: [
      'Undo the change at the source where that is possible, and start again. Otherwise the table needs a new copy: name it under tables.exclude and start; stop; empty the target’s table and give it the new definition; take it in again and start',
      ...statements,
    ].join('\n'),
  })
}
