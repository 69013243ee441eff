import type { Lane, TableReader } from '../connector.ts'
import type { ChunkData } from '../rows.ts'
import type { Lease } from '../coordinate/lease.ts'
import type { Chunk, TableSchema } from '../model.ts'

/** Copies one chunk from reader to lane under the chunk's lease: bulk frames untouched where both ends name a common format, row images
 *  otherwise. Resolves with the rows loaded, undefined if the chunk was done before. `seen` hears of every piece of bulk bytes. */
export async function copyChunk(
  reader: TableReader,
  lane: Lane,
  schema: TableSchema,
  chunk: Chunk,
  { epoch, signal }: Pick<Lease, 'epoch' | 'signal'>,
  seen: (bytes: number) => void,
): Promise<number | undefined> {
  const taken = lane.formats?.(schema) ?? []
  const format = reader.formats?.(schema).find((name) => taken.includes(name))
  const data: ChunkData =
    format !== undefined && reader.frames !== undefined
      ? { kind: 'frames', format, frames: counted(reader.frames(schema, chunk, format, signal), seen) }
      : { kind: 'rows', batches: reader.rows(schema, chunk, signal) }
  return await lane.load(schema, chunk, data, epoch, signal)
}

async function* counted(frames: AsyncIterable<Uint8Array>, seen: (bytes: number) => void): AsyncIterable<Uint8Array> {
  for await (const piece of frames) {
    seen(piece.length)
    yield piece
  }
}
