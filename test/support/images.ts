import type { Position, TableSchema } from '../../src/model.ts'
import { Op, rowsOf, Tag, type Cell, type ChangeBatch, type Rows, type Transaction } from '../../src/rows.ts'

/** What a test writes for a cell: text of the value, null, or undefined where it is absent. */
export type Value = string | null | undefined

/** An image's cells as they come out of the log: native where the column has a native form of ours to print, else text. */
export function cellsOf(schema: TableSchema, values: readonly Value[]): readonly Cell[] {
  return schema.columns.map(({ form }, c) => {
    const value = values[c]
    if (value === null || value === undefined) return value
    if (form === 'text') return { tag: Tag.text, bytes: Buffer.from(value) }
    return { tag: Tag.native, bytes: nativeOf(form, value) }
  })
}

/** The same with every cell as text, as a source may send it. */
export function textCellsOf(schema: TableSchema, values: readonly Value[]): readonly Cell[] {
  return schema.columns.map((_, c) => {
    const value = values[c]
    return value === null || value === undefined ? value : { tag: Tag.text, bytes: Buffer.from(value) }
  })
}

function nativeOf(form: Exclude<TableSchema['columns'][number]['form'], 'text'>, value: string): Buffer {
  const bytes = Buffer.alloc(8)
  switch (form) {
    case 'bool':
      return Buffer.of(value === 't' ? 1 : 0)
    case 'int16':
      return bytes.subarray(0, bytes.writeInt16BE(Number(value)))
    case 'int32':
      return bytes.subarray(0, bytes.writeInt32BE(Number(value)))
    case 'int64':
      return bytes.subarray(0, bytes.writeBigInt64BE(BigInt(value)))
    case 'float32':
      return bytes.subarray(0, bytes.writeFloatBE(Number(value)))
    case 'float64':
      return bytes.subarray(0, bytes.writeDoubleBE(Number(value)))
    case 'bytes':
      return Buffer.from(value.replace(/^\\x/, ''), 'hex')
    default:
      return form satisfies never
  }
}

export function imagesOf(schema: TableSchema, rows: readonly (readonly Value[])[]): Rows {
  return rowsOf(rows.map((values) => cellsOf(schema, values)))
}

export type TestChange = {
  readonly schema: TableSchema
  readonly op: keyof typeof Op
  readonly old?: readonly Value[]
  readonly next?: readonly Value[]
}

/** One transaction with these changes, numbered 0, 4, 8, …. */
export function changesOf(changes: readonly TestChange[], position: Position): ChangeBatch {
  const schemas = [...new Set(changes.map(({ schema }) => schema))]
  const cells = changes.flatMap(({ schema, old, next }) => [
    old ? cellsOf(schema, old) : [],
    next ? cellsOf(schema, next) : [],
  ])
  const transaction: Transaction = { position, committedAt: 0, id: '1', first: 0, firstSeq: 0 }
  return {
    kind: 'changes',
    count: changes.length,
    images: rowsOf(cells),
    op: Uint8Array.from(changes, ({ op }) => Op[op]),
    table: Uint16Array.from(changes, ({ schema }) => schemas.indexOf(schema)),
    schemas,
    transactions: [transaction],
  }
}
