import type { Position, TableId, TableSchema } from '../../../src/model.ts'
import { Output } from '../../../src/output.ts'
import { appendImage, readImage, Tag, type Cell, type ChangeBatch, type Transaction } from '../../../src/rows.ts'

/** A value as a test writes it: null, or undefined where the source sent nothing. */
export type Value = string | null | undefined
export type Row = readonly Value[]
export type Change = {
  readonly op: number
  readonly schema: TableSchema
  readonly old?: Row
  readonly row?: Row
}
type Commit = { readonly position: Position; readonly changes: readonly Change[] }

export function tableOf(name: string, more: Partial<TableSchema> = {}): TableSchema {
  const table: TableId = { schema: 'public', name }
  return {
    table,
    version: 1,
    columns: [
      { name: 'id', type: 'bigint', form: 'int64', nullable: false },
      { name: 'a', type: 'text', form: 'text', nullable: true },
      { name: 'b', type: 'text', form: 'text', nullable: true },
      { name: 'n', type: 'integer', form: 'int32', nullable: true },
    ],
    key: [0],
    before: 'key',
    shape: 'columns',
    pinned: false,
    ...more,
  }
}

export function positionOf(n: number): Position {
  return n.toString(16).padStart(16, '0') as Position
}

/** As a source sends it: text cells. `firstSeq`: of each commit's first change here. */
export function batchOf(commits: readonly (Commit & { readonly firstSeq?: number })[]): ChangeBatch {
  const out = new Output(1024)
  const starts: number[] = [0]
  const op: number[] = []
  const table: number[] = []
  const schemas: TableSchema[] = []
  const transactions: Transaction[] = []
  for (const { position, changes, firstSeq = 0 } of commits) {
    transactions.push({ position, committedAt: 1_700_000_000_000, id: '7', first: op.length, firstSeq })
    for (const change of changes) {
      if (!schemas.includes(change.schema)) schemas.push(change.schema)
      op.push(change.op)
      table.push(schemas.indexOf(change.schema))
      for (const row of [change.old, change.row]) {
        if (row !== undefined) appendImage(out, row.map(cellOf))
        starts.push(out.at)
      }
    }
  }
  const images = { bytes: out.bytes.subarray(0, out.at), starts: Int32Array.from(starts), count: 2 * op.length }
  return {
    kind: 'changes',
    count: op.length,
    images,
    op: Uint8Array.from(op),
    table: Uint16Array.from(table),
    schemas,
    transactions,
  }
}

function cellOf(value: Value): Cell {
  return typeof value === 'string' ? { tag: Tag.text, bytes: Buffer.from(value) } : value
}

/** Values of an image out of the log, or of one as the source sent it. */
export function valuesOf(bytes: Uint8Array, start: number, end: number): Value[] {
  return readImage(bytes, start, end).map((cell) => {
    if (cell === null || cell === undefined) return cell
    const buffer = Buffer.from(cell.bytes)
    if (cell.tag === Tag.text) return buffer.toString()
    return buffer.length === 8 ? String(buffer.readBigInt64BE()) : String(buffer.readInt32BE())
  })
}
