import type { Output } from '../output.ts'
import type { Epoch, TableSchema } from '../model.ts'
import type { ChangeBatch, Rows } from '../rows.ts'
import type { FetchedBatch } from '../change-log/change-log.ts'
/** Compiled once per table schema. `key`: framed Avro key of an image; its body after the 5 framing bytes is what is hashed and folded on. `value`: framed envelope of change i. */
export interface Encoder {
  key(out: Output, images: Rows, row: number): void
  value(out: Output, batch: ChangeBatch, i: number, seq: number, epoch: Epoch): void
}
/** What the core reads of every record; one object per fetch loop. The position stays bytes until it differs from the last one. */
export type Prefix = {
  schemaId: number
  op: number
  positionStart: number
  positionEnd: number
  seq: number
  epoch: Epoch
  committedAt: number
  rest: number
}
/** Compiled once per writer schema id; appends old and new image of record i. */
export type ReadPrefix = (batch: FetchedBatch, i: number, into: Prefix) => 'change' | 'control' | 'none'
export interface Decoder {
  readonly schema: TableSchema
  images(out: Output, batch: FetchedBatch, i: number, prefix: Prefix): void
}
