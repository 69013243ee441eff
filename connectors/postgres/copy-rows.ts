import { Failure } from '../../src/errors.ts'
import { Output } from '../../src/output.ts'
import { Tag, type Rows } from '../../src/rows.ts'

const batchBytes = 512 << 10
/** Signature, flags and length of the extension, which is empty. */
const headerBytes = 19

/**
 * CopyData frames of a binary COPY whose columns are all text to row images, in batches of about 512 kB (a larger row is a
 * batch of its own). `lead` columns before the row's own are taken off and given to `onLead` as text. Rows are lent until the next pull.
 */
export async function* copyRows(
  frames: AsyncIterable<Buffer>,
  cells: number,
  lead = 0,
  onLead: (values: readonly (string | null)[]) => boolean = () => true,
): AsyncGenerator<Rows, void, void> {
  const out = new Output(batchBytes + (64 << 10))
  let starts = new Int32Array(1024)
  let count = 0
  // Bytes of frames' payloads, joined: `held` up to `end` are read up to `at`.
  const held = new Output(256 << 10)
  let at = 0
  let frameLeft = 0
  const frameHeader = Buffer.alloc(5)
  let headerHave = 0
  let started = false
  let ended = false

  const join = (piece: Buffer): void => {
    held.bytes.copyWithin(0, at, held.at)
    held.at -= at
    at = 0
    held.reserve(piece.length)
    let from = 0
    while (from < piece.length) {
      if (frameLeft > 0) {
        const step = Math.min(frameLeft, piece.length - from)
        piece.copy(held.bytes, held.at, from, from + step)
        held.at += step
        from += step
        frameLeft -= step
      } else {
        frameHeader[headerHave++] = piece[from++] ?? 0
        if (headerHave === 5) {
          frameLeft = frameHeader.readUInt32BE(1) - 4
          headerHave = 0
        }
      }
    }
  }
  /** The end of the row at `at`, or -1 where it is not all here. */
  const rowEnd = (): number => {
    const { bytes } = held
    let to = at + 2
    for (let i = lead + cells; i > 0; i--) {
      if (to + 4 > held.at) return -1
      const length = bytes.readInt32BE(to)
      to += 4 + Math.max(length, 0)
    }
    return to <= held.at ? to : -1
  }
  const append = (): void => {
    const { bytes } = held
    let from = at + 2
    let keep = true
    if (lead > 0) {
      const values: (string | null)[] = []
      for (let i = 0; i < lead; i++) {
        const length = bytes.readInt32BE(from)
        from += 4
        values.push(length < 0 ? null : bytes.toString('utf8', from, from + length))
        from += Math.max(length, 0)
      }
      keep = onLead(values)
    }
    if (count + 2 > starts.length) {
      const larger = new Int32Array(starts.length * 2)
      larger.set(starts)
      starts = larger
    }
    if (keep) {
      let size = 2
      let to = from
      for (let i = 0; i < cells; i++) {
        const length = bytes.readInt32BE(to)
        to += 4 + Math.max(length, 0)
        size += 5 + Math.max(length, 0)
      }
      out.reserve(size)
      const image = out.bytes
      let write = image.writeUInt16BE(cells, out.at)
      for (let i = 0; i < cells; i++) {
        const length = bytes.readInt32BE(from)
        if (length < 0) {
          image[write++] = Tag.null
          from += 4
        } else {
          image[write++] = Tag.text
          const to = from + 4 + length
          // A call for a few bytes costs more than the bytes.
          if (length > 48) write += bytes.copy(image, write, from, to)
          else for (let at = from; at < to; at++) image[write++] = bytes[at] ?? 0
          from = to
        }
      }
      out.at = write
    }
    starts[++count] = out.at
  }
  const take = (): Rows => ({ bytes: out.bytes.subarray(0, out.at), starts: starts.subarray(0, count + 1), count })

  for await (const piece of frames) {
    join(piece)
    if (!started) {
      if (held.at < headerBytes) continue
      at = headerBytes
      started = true
    }
    while (!ended && at + 2 <= held.at) {
      const fields = held.bytes.readInt16BE(at)
      if (fields === -1) {
        ended = true
        at = held.at
      } else {
        if (fields !== lead + cells)
          throw new Failure('STREAM_MALFORMED', { observed: `a row of ${fields} cells`, needed: `${lead + cells}` })
        const to = rowEnd()
        if (to < 0) break
        append()
        at = to
        if (out.at >= batchBytes) {
          yield take()
          out.clear()
          count = 0
        }
      }
    }
  }
  if (count > 0) yield take()
}
