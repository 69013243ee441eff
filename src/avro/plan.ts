import type { Output } from '../output.ts'
import type { Epoch, TableSchema } from '../model.ts'
import type { ChangeBatch, Rows } from '../rows.ts'
import type { FetchedBatch } from '../change-log/change-log.ts'
/** Bytes before the body of each key and value: a zero and the schema's id. */
export const framing = 5
/** Compiled once per table schema. `key`: framed Avro key of an image, nothing for a table without one; its body after the 5 framing bytes is what is
 *  hashed and folded on. `value`: framed envelope of change i. */
export interface Encoder {
  key(out: Output, images: Rows, row: number): void
  value(out: Output, batch: ChangeBatch, i: number, seq: number, epoch: Epoch): void
}
/** What the core reads of every record; one object per fetch loop. The position stays bytes until it differs from the last one. `committedAt` in ms,
 *  `rest` where the decoder goes on. Of a control record only `schemaId` and `rest` are set. */
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
/** For `readPrefix` to fill. */
export function emptyPrefix(): Prefix {
  return { schemaId: 0, op: 0, positionStart: 0, positionEnd: 0, seq: 0, epoch: 0, committedAt: 0, rest: 0 }
}
/** `none`: a tombstone, or no record of ours. Throws LOG_DAMAGED if it begins like one of ours and does not go on like it. */
export type ReadPrefix = (batch: FetchedBatch, i: number, into: Prefix) => 'change' | 'control' | 'none'
/** Compiled once per writer schema id; appends old and new image of record i, each only if there is one, and returns where in `out` the new one
 *  begins. Cells of the new image that were not sent, and untrusted ones of the old, are absent. */
export interface Decoder {
  readonly schema: TableSchema
  images(out: Output, batch: FetchedBatch, i: number, prefix: Prefix): number
}
