import { cellLength, Tag } from '../rows.ts'
import type { Table } from './arrived.ts'

/** The column sets seen in one table's images, numbered; 0: all columns. */
export interface Shapes {
  readonly table: Table
  columns(set: number): readonly number[]
  /** The set of the columns present in the image that starts here. */
  of(bytes: Uint8Array, start: number): number
  /** The set of the columns for which `present` is not negative. */
  ofPresent(present: Int32Array): number
}

/** Up to this many columns a set is looked up by an integer of absent bits. */
const smallest = 30

export function shapesOf(table: Table): Shapes {
  const width = table.schema.columns.length
  const sets: (readonly number[])[] = [table.schema.columns.map((_, i) => i)]
  const byBits = new Map<number, number>()
  const byText = new Map<string, number>()
  const absent: number[] = []
  const numbered = <Key>(known: Map<Key, number>, key: Key): number => {
    const found = known.get(key)
    if (found !== undefined) return found
    const missing = new Set(absent)
    const set = sets.push((sets[0] ?? []).filter((column) => !missing.has(column))) - 1
    known.set(key, set)
    return set
  }
  const lookUp = (): number => {
    if (absent.length === 0) return 0
    if (width > smallest) return numbered(byText, absent.join())
    let bits = 0
    for (const column of absent) bits |= 1 << column
    return numbered(byBits, bits)
  }
  return {
    table,
    columns: (set) => sets[set] ?? [],
    of(bytes, start) {
      absent.length = 0
      let at = start + 2
      for (let column = 0; column < width; column++) {
        const tag = bytes[at++]
        if (tag === Tag.absent) absent.push(column)
        else if (tag !== Tag.null) at += 4 + cellLength(bytes, at)
      }
      return absent.length === 0 ? 0 : lookUp()
    },
    ofPresent(present) {
      absent.length = 0
      for (let column = 0; column < width; column++) if ((present[column] ?? -1) < 0) absent.push(column)
      return lookUp()
    },
  }
}
