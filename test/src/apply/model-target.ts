import assert from 'node:assert/strict'
import { Failure } from '../../../src/errors.ts'
import {
  origin,
  partitionName,
  tableName,
  type Advance,
  type Barrier,
  type Checkpoint,
  type TableSchema,
  type TopicPartition,
} from '../../../src/model.ts'
import { Op, type ChangeBatch, type LaneBatch } from '../../../src/rows.ts'
import { valuesOf, type Row, type Value } from './rows-for-tests.ts'

/** A target's content as plain maps. Keyless tables keep a row with its number of copies. */
export type Content = Map<string, Map<string, { row: Value[]; copies: number }>>
type ModelLane = {
  apply(batch: LaneBatch, advances: readonly Advance[], signal: AbortSignal): Promise<readonly TopicPartition[]>
  arrive(barrier: Barrier, advance: Advance, signal: AbortSignal): Promise<'done' | 'waiting' | 'lost'>
}
export type ModelTarget = {
  readonly content: Content
  readonly checkpoints: Map<string, Checkpoint>
  readonly truncated: string[]
  claim(partitions: readonly TopicPartition[]): readonly Checkpoint[]
  lane(): ModelLane
  /** Called at each step before and after it took effect; throws to hurt. */
  hurt: (when: 'before' | 'after') => Promise<void>
}

/** Checks of its own: the guard, that folded groups and the unfolded changes end in the same content, and that a barrier is done once. */
export function modelTarget(): ModelTarget {
  let content: Content = new Map()
  const checkpoints = new Map<string, Checkpoint>()
  const barriers = new Map<string, { readonly arrived: Set<string>; done: boolean }>()
  const truncated: string[] = []
  let claims = 0
  const refused = (advance: Advance): boolean => {
    const now = checkpoints.get(partitionName(advance.to))
    const { claim, hold, loose } = advance.to
    return !now || now.claim !== claim || now.hold !== hold || now.loose !== loose || now.offset !== advance.from
  }
  const target: ModelTarget = {
    get content() {
      return content
    },
    checkpoints,
    truncated,
    hurt: async () => {},
    claim(partitions) {
      return partitions.map(({ topic, partition }) => {
        const at = { topic, partition }
        const none: Checkpoint = {
          ...at,
          offset: 0,
          mark: { position: origin, seq: 0 },
          captureEpoch: 0,
          claim: '',
          loose: origin,
        }
        const now = { ...(checkpoints.get(partitionName(at)) ?? none), claim: `claim ${++claims}` }
        checkpoints.set(partitionName(at), now)
        return now
      })
    },
    lane: () => ({
      async apply(batch, advances, signal) {
        signal.throwIfAborted()
        await target.hurt('before')
        signal.throwIfAborted()
        const lost = advances.filter(refused).map(({ to }) => to)
        if (lost.length > 0) return lost
        const folded = copyOf(content)
        applyGroups(folded, batch)
        const unfolded = copyOf(content)
        applyChanges(unfolded, batch.ordered(), batch.mayMiss)
        assert.deepEqual(sorted(folded), sorted(unfolded), 'folded and unfolded changes differ')
        content = folded
        for (const { to } of advances) checkpoints.set(partitionName(to), to)
        await target.hurt('after')
        return []
      },
      async arrive(barrier, advance, signal) {
        signal.throwIfAborted()
        await target.hurt('before')
        if (refused(advance)) return 'lost'
        const id = `${barrier.mark.position}/${barrier.mark.seq}`
        const state = barriers.get(id) ?? { arrived: new Set(), done: false }
        barriers.set(id, state)
        state.arrived.add(partitionName(advance.to))
        if (!state.done) {
          if (!barrier.partitions.every((at) => state.arrived.has(partitionName(at)))) return 'waiting'
          state.done = true
          perform(content, barrier, truncated)
        }
        checkpoints.set(partitionName(advance.to), advance.to)
        await target.hurt('after')
        return 'done'
      },
    }),
  }
  return target
}

export function sorted(content: Content): unknown {
  return [...content]
    .map(([table, rows]) => [table, [...rows].sort(([a], [b]) => (a < b ? -1 : 1))] as const)
    .filter(([, rows]) => rows.length > 0)
    .sort(([a], [b]) => (a < b ? -1 : 1))
}

function copyOf(content: Content): Content {
  return new Map([...content].map(([table, rows]) => [table, new Map([...rows].map(([k, v]) => [k, { ...v }]))]))
}

function rowsOf(content: Content, schema: TableSchema): Map<string, { row: Value[]; copies: number }> {
  const name = tableName(schema.table)
  const rows = content.get(name) ?? new Map<string, { row: Value[]; copies: number }>()
  content.set(name, rows)
  return rows
}

function keyOf(schema: TableSchema, row: Row): string {
  return JSON.stringify(schema.key.length === 0 ? row : schema.key.map((i) => row[i]))
}

function applyGroups(content: Content, { groups, inOrder, mayMiss }: LaneBatch): void {
  const seen = new Set<string>()
  const order = groups.map(({ kind }) => ['delete', 'update', 'upsert'].indexOf(kind))
  assert.deepEqual(
    order,
    order.toSorted((a, b) => a - b),
    'deletes, then updates, then upserts',
  )
  for (const group of groups) {
    const rows = rowsOf(content, group.schema)
    for (let i = 0; i < group.rows.count; i++) {
      const image = valuesOf(group.rows.bytes, group.rows.starts[i] ?? 0, group.rows.starts[i + 1] ?? 0)
      const key = keyOf(group.schema, image)
      const unique = `${tableName(group.schema.table)} ${key}`
      assert.ok(!seen.has(unique), `the key of ${unique} occurs twice`)
      seen.add(unique)
      if (group.kind === 'delete') {
        rows.delete(key)
        continue
      }
      const present = image.flatMap((value, column) => (value === undefined ? [] : [column]))
      assert.deepEqual(group.columns, present, 'columns are those present')
      change(rows, group.schema, group.kind === 'upsert' ? Op.insert : Op.update, undefined, image, group.mayMiss)
    }
  }
  if (inOrder !== undefined) applyChanges(content, inOrder, mayMiss)
}

function applyChanges(content: Content, batch: ChangeBatch, mayMiss: boolean): void {
  for (let i = 0; i < batch.count; i++) {
    const schema = batch.schemas[batch.table[i] ?? 0]
    assert.ok(schema !== undefined)
    const { bytes, starts } = batch.images
    const old = valuesOf(bytes, starts[2 * i] ?? 0, starts[2 * i + 1] ?? 0)
    const row = valuesOf(bytes, starts[2 * i + 1] ?? 0, starts[2 * i + 2] ?? 0)
    change(rowsOf(content, schema), schema, batch.op[i] ?? 0, old.length > 0 ? old : undefined, row, mayMiss)
  }
}

/** One change, as SQL would do it row by row. */
export function change(
  rows: Map<string, { row: Value[]; copies: number }>,
  schema: TableSchema,
  op: number,
  old: Row | undefined,
  row: Row,
  mayMiss: boolean,
): void {
  const keyless = schema.key.length === 0
  if (op === Op.delete || (keyless && op === Op.update)) {
    const key = keyOf(schema, old ?? [])
    const there = rows.get(key)
    if (keyless && there === undefined) throw new Failure('TARGET_DRIFTED', { object: tableName(schema.table) })
    if (there !== undefined && --there.copies <= 0) rows.delete(key)
    if (op === Op.delete) return
  }
  const key = keyOf(schema, row)
  const there = rows.get(key)
  if (keyless) rows.set(key, { row: [...row], copies: (there?.copies ?? 0) + 1 })
  else if (op === Op.insert || op === Op.read || row.every((value) => value !== undefined)) {
    rows.set(key, { row: row.map((value, i) => (value === undefined ? there?.row[i] : value)), copies: 1 })
  } else if (there !== undefined) there.row = row.map((value, i) => (value === undefined ? there.row[i] : value))
  else if (!mayMiss) throw new Failure('TARGET_DRIFTED', { object: tableName(schema.table) })
}

function perform(content: Content, { effect, mark }: Barrier, truncated: string[]): void {
  if (effect.kind === 'truncate') {
    truncated.push(mark.position)
    for (const table of effect.tables) content.delete(tableName(table))
  } else if (effect.kind === 'rekey') {
    const rows = rowsOf(content, effect.schema)
    const old = valuesOf(effect.oldKey, 0, effect.oldKey.length)
    const there = rows.get(keyOf(effect.schema, old))
    assert.ok(there !== undefined, 'the row to move is there')
    rows.delete(keyOf(effect.schema, old))
    const now = valuesOf(effect.newImage, 0, effect.newImage.length)
    there.row = now.map((value, i) => (value === undefined ? there.row[i] : value))
    rows.set(keyOf(effect.schema, there.row), there)
  }
}
