import { Failure } from '../errors.ts'
import { Output } from '../output.ts'
import { cellLength, hasAbsentCell, Op, Tag, type RowGroup } from '../rows.ts'
import type { Arrived } from './arrived.ts'
import { shapesOf, type Shapes } from './shape.ts'

/** Last change per key, with absent cells overlaid from earlier ones, in groups by table, kind and column set: deletes, then updates, then upserts.
 *  An update that brings the whole row is an upsert. `picked`: changes of `arrived`, each partition's in order, none of a table that is applied in order;
 *  `mayMiss` holds for all of them. Groups are lent until the next call, and until `arrived` is cleared. */
type Fold = (arrived: Arrived, picked: Int32Array, mayMiss: boolean) => readonly RowGroup[]

const kinds = ['delete', 'update', 'upsert'] as const
const deleted = 0
const updated = 1
const upserted = 2
type Group = { readonly table: number; readonly kind: number; readonly set: number; base: number; count: number }

/** Per key that occurs: how its last state came about, and where its image lies. */
type Keys = {
  readonly kind: Uint8Array
  /** The change with the newest image; older ones that still matter hang on `older`. */
  readonly head: Int32Array
  readonly from: Int32Array
  readonly to: Int32Array
  /** 1: the image lies in `merged`. */
  readonly isMerged: Uint8Array
  readonly group: Int32Array
}

export function createFold(): Fold {
  let slots = new Int32Array(0)
  let older = new Int32Array(0)
  let keys = keysFor(0)
  let byGroup = new Int32Array(0)
  let present = new Int32Array(0)
  const merged = new Output(4096)
  const out = new Output(64 * 1024)
  const shapes: Shapes[] = []

  /** Fills `keys` and `older`; returns how many keys there are. */
  const collect = (arrived: Arrived, picked: Int32Array, mayMiss: boolean): number => {
    const { key, op, table, images } = arrived
    const body = arrived.keys.bytes
    const { kind, head } = keys
    const mask = slots.length - 1
    let count = 0
    slots.fill(-1)
    for (let n = 0; n < picked.length; n++) {
      const i = picked[n] ?? 0
      const start = key[i] ?? 0
      const end = key[i + 1] ?? 0
      const tableIndex = table[i] ?? 0
      let slot = hash(body, start, end, tableIndex) & mask
      let u = slots[slot] ?? -1
      while (u >= 0 && !sameKey(arrived, head[u] ?? 0, tableIndex, start, end)) {
        slot = (slot + 1) & mask
        u = slots[slot] ?? -1
      }
      const known = u >= 0
      if (!known) slots[slot] = u = count++
      older[i] = -1
      if (op[i] === Op.delete) kind[u] = deleted
      else if (op[i] !== Op.update || !hasAbsentCell(images.bytes, arrived.fresh[i] ?? 0)) kind[u] = upserted
      else if (!known) kind[u] = updated
      else if (kind[u] === deleted) {
        if (mayMiss) continue
        throw new Failure('TARGET_DRIFTED', {
          object: arrived.tables[tableIndex]?.name ?? '',
          observed: 'the log updates a row in part that it has just deleted',
        })
      } else older[i] = head[u] ?? -1
      head[u] = i
    }
    return count
  }

  /** Writes the newest image with its absent cells taken from older ones; returns its column set. */
  const overlay = (arrived: Arrived, head: number, width: number, shape: Shapes): number => {
    const { bytes } = arrived.images
    if (present.length < width) present = new Int32Array(width)
    present.fill(-1, 0, width)
    let left = width
    let size = 2
    for (let i = head; i >= 0 && left > 0; i = older[i] ?? -1) {
      let at = (arrived.fresh[i] ?? 0) + 2
      for (let column = 0; column < width; column++) {
        const tag = bytes[at]
        const cell = at
        at += tag === Tag.absent || tag === Tag.null ? 1 : 5 + cellLength(bytes, at + 1)
        if (tag === Tag.absent || (present[column] ?? -1) >= 0) continue
        present[column] = cell
        size += at - cell
        left--
      }
    }
    merged.reserve(size + left)
    let at = merged.bytes.writeUInt16BE(width, merged.at)
    for (let column = 0; column < width; column++) {
      const cell = present[column] ?? -1
      if (cell < 0) merged.bytes[at++] = Tag.absent
      else {
        const length = bytes[cell] === Tag.null ? 1 : 5 + cellLength(bytes, cell + 1)
        at += bytes.copy(merged.bytes, at, cell, cell + length)
      }
    }
    merged.at = at
    return shape.ofPresent(present)
  }

  /** Places each key's image and finds its group. */
  const place = (arrived: Arrived, count: number): Group[] => {
    const { kind, head, from, to, isMerged, group } = keys
    const groups: Group[] = []
    const known = new Map<number, number>()
    let last = -1
    let lastGroup = 0
    let shape: Shapes | undefined
    let shapeTable = -1
    merged.clear()
    for (let u = 0; u < count; u++) {
      const i = head[u] ?? 0
      const table = arrived.table[i] ?? 0
      const how = kind[u] ?? 0
      let set = 0
      isMerged[u] = 0
      if (how === deleted) {
        from[u] = arrived.old[i] ?? 0
        to[u] = arrived.fresh[i] ?? 0
      } else {
        if (shape === undefined || table !== shapeTable) shape = shapeOf(arrived, (shapeTable = table))
        if ((older[i] ?? -1) >= 0) {
          from[u] = merged.at
          set = overlay(arrived, i, shape.table.schema.columns.length, shape)
          to[u] = merged.at
          isMerged[u] = 1
        } else {
          from[u] = arrived.fresh[i] ?? 0
          to[u] = arrived.end[i] ?? 0
          set = shape.of(arrived.images.bytes, from[u] ?? 0)
        }
      }
      const name = (table * 3 + how) * 0x10000 + set
      if (name !== last) {
        let found = known.get(name)
        if (found === undefined) {
          found = groups.push({ table, kind: how, set, base: 0, count: 0 }) - 1
          known.set(name, found)
        }
        last = name
        lastGroup = found
      }
      group[u] = lastGroup
      const into = groups[lastGroup]
      if (into !== undefined) into.count++
    }
    return groups
  }
  const shapeOf = (arrived: Arrived, index: number): Shapes => {
    const table = arrived.tables[index]
    if (table === undefined) throw new RangeError(`no table ${index}`)
    const known = shapes[index]
    if (known?.table === table) return known
    return (shapes[index] = shapesOf(table))
  }

  /** The images of byGroup[base, base + count), back to back. */
  const gather = (arrived: Arrived, starts: Int32Array, base: number, count: number): Uint8Array => {
    const { from, to, isMerged } = keys
    const images = arrived.images.bytes
    let together = true
    for (let n = 0, end = -1; n < count && together; n++) {
      const u = byGroup[base + n] ?? 0
      together = isMerged[u] === 0 && (n === 0 || from[u] === end)
      end = to[u] ?? 0
      starts[n] = from[u] ?? 0
      starts[n + 1] = end
    }
    if (together) return images // as they lie: a batch of inserts is not copied
    let size = 0
    for (let n = 0; n < count; n++) {
      const u = byGroup[base + n] ?? 0
      size += (to[u] ?? 0) - (from[u] ?? 0)
    }
    out.reserve(size)
    let runFrom = 0
    let runTo = 0
    for (let n = 0; n < count; n++) {
      const u = byGroup[base + n] ?? 0
      const start = from[u] ?? 0
      const end = to[u] ?? 0
      starts[n] = out.at + runTo - runFrom
      if (isMerged[u] === 1) {
        out.at += images.copy(out.bytes, out.at, runFrom, runTo)
        out.at += merged.bytes.copy(out.bytes, out.at, start, end)
        runFrom = runTo = 0
      } else if (start === runTo) runTo = end
      else {
        out.at += images.copy(out.bytes, out.at, runFrom, runTo)
        runFrom = start
        runTo = end
      }
    }
    out.at += images.copy(out.bytes, out.at, runFrom, runTo)
    starts[count] = out.at
    return out.bytes
  }

  return (arrived, picked, mayMiss) => {
    if (picked.length === 0) return []
    if (slots.length < 2 * picked.length) slots = new Int32Array(2 ** Math.ceil(Math.log2(2 * picked.length)))
    if (older.length < arrived.count) older = new Int32Array(arrived.op.length)
    if (keys.kind.length < picked.length) {
      keys = keysFor(picked.length * 2)
      byGroup = new Int32Array(picked.length * 2)
    }
    const count = collect(arrived, picked, mayMiss)
    const groups = place(arrived, count)
    const ordered = groups.toSorted((a, b) => a.kind - b.kind)
    let base = 0
    for (const group of ordered) {
      group.base = base
      base += group.count
      group.count = 0
    }
    for (let u = 0; u < count; u++) {
      const group = groups[keys.group[u] ?? 0]
      if (group !== undefined) byGroup[group.base + group.count++] = u
    }
    out.clear()
    const starts = new Int32Array(count + groups.length)
    return ordered.map(({ table, kind, set, base: first, count: rows }, n) => {
      const own = starts.subarray(first + n, first + n + rows + 1)
      const { schema } = shapeOf(arrived, table).table
      const columns = kind === deleted ? schema.key : shapeOf(arrived, table).columns(set)
      const bytes = gather(arrived, own, first, rows)
      return { schema, kind: kinds[kind] ?? 'upsert', mayMiss, columns, rows: { bytes, starts: own, count: rows } }
    })
  }
}

function keysFor(capacity: number): Keys {
  return {
    kind: new Uint8Array(capacity),
    head: new Int32Array(capacity),
    from: new Int32Array(capacity),
    to: new Int32Array(capacity),
    isMerged: new Uint8Array(capacity),
    group: new Int32Array(capacity),
  }
}

function sameKey(arrived: Arrived, i: number, table: number, start: number, end: number): boolean {
  const from = arrived.key[i] ?? 0
  if (arrived.table[i] !== table || (arrived.key[i + 1] ?? 0) - from !== end - start) return false
  const { bytes } = arrived.keys
  for (let a = from, b = start; b < end; a++, b++) if (bytes[a] !== bytes[b]) return false
  return true
}

/** FNV-1a with a last mix, as only the lower bits are used. */
function hash(bytes: Uint8Array, start: number, end: number, seed: number): number {
  let h = 0x811c9dc5 ^ seed
  for (let at = start; at < end; at++) h = Math.imul(h ^ (bytes[at] ?? 0), 0x01000193)
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b)
  return h ^ (h >>> 13)
}
