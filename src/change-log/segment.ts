import { crc32c } from '@node-rs/crc32'
import { open, type FileHandle } from 'node:fs/promises'
import { failpoint } from '../failpoint.ts'
import type { TopicPartition } from '../model.ts'
import { At, batchSize, checksum, readOffset } from './batch-layout.ts'
import { damaged } from './read-batches.ts'

/**
 * One file of record batches of one partition. It begins with a header that names its predecessor and how far that one counts: what somebody else
 * wrote behind that place is ignored.
 */
export type Segment = {
  readonly id: string
  readonly path: string
  readonly file: FileHandle
  readonly base: number
  /** Offset and bytes its records end at. */
  end: number
  bytes: number
  /** Sparse: offsets of batches, and where they begin. */
  readonly index: { readonly offset: number; readonly at: number }[]
}
type SegmentHeader = {
  /** '' if it is the first. */
  readonly predecessor: string
  readonly predecessorBytes: number
  readonly base: number
}

/** `xfl1`, predecessor's id in 32 bytes, its bytes, base offset, checksum of all before. */
export const headerSize = 56
const magic = Buffer.from('xfl1')
const indexEvery = 64 * 1024
const scanBytes = 4 * 1024 * 1024

export async function createSegment(id: string, path: string, header: SegmentHeader): Promise<Segment> {
  const bytes = Buffer.alloc(headerSize)
  magic.copy(bytes)
  bytes.write(header.predecessor, 4, 32, 'latin1')
  bytes.writeDoubleBE(header.predecessorBytes, 36)
  bytes.writeDoubleBE(header.base, 44)
  bytes.writeUInt32BE(crc32c(bytes.subarray(0, 52)), 52)
  const file = await open(path, 'w+')
  try {
    failpoint('log.before-header')
    await file.write(bytes, 0, headerSize, 0)
    failpoint('log.between-header-and-sync')
    await file.sync()
  } catch (error) {
    await file.close()
    throw error
  }
  return { id, path, file, base: header.base, end: header.base, bytes: headerSize, index: [] }
}

/** Undefined if the header was never written whole: then nothing in the file was ever acknowledged. */
export async function readSegmentHeader(file: FileHandle): Promise<SegmentHeader | undefined> {
  const bytes = Buffer.alloc(headerSize)
  const { bytesRead } = await file.read(bytes, 0, headerSize, 0)
  if (bytesRead < headerSize || !bytes.subarray(0, 4).equals(magic)) return undefined
  if (crc32c(bytes.subarray(0, 52)) !== bytes.readUInt32BE(52)) return undefined
  return {
    predecessor: bytes.toString('latin1', 4, 36).replace(/\0+$/, ''),
    predecessorBytes: bytes.readDoubleBE(36),
    base: bytes.readDoubleBE(44),
  }
}

/** Notes a batch of `size` bytes at the segment's end. */
export function extend(segment: Segment, size: number, count: number): void {
  const last = segment.index.at(-1)
  if (last === undefined || segment.bytes - last.at >= indexEvery)
    segment.index.push({ offset: segment.end, at: segment.bytes })
  segment.end += count
  segment.bytes += size
}

/**
 * Walks all batches from the header on, checking each. `until`: where the successor says that it ends; up to there everything must be whole. Without
 * one the first batch that is not whole is the torn tail of a crash, unless a whole one follows: then the file is damaged, and LOG_DAMAGED.
 */
export async function scan(at: TopicPartition, segment: Segment, until: number | undefined): Promise<void> {
  const size = until ?? (await segment.file.stat()).size
  // One for the whole file: a large one is read faster than memory is given back.
  let buffer = Buffer.allocUnsafe(Math.min(scanBytes, Math.max(0, size - segment.bytes)))
  let window = buffer.subarray(0, 0)
  let from = segment.bytes
  /** Valid until the next call. */
  const need = async (place: number, bytes: number): Promise<Buffer | undefined> => {
    if (place + bytes > size) return undefined
    if (place < from || place + bytes > from + window.length) {
      const length = Math.min(size - place, Math.max(scanBytes, bytes))
      if (buffer.length < length) buffer = Buffer.allocUnsafe(length)
      const { bytesRead } = await segment.file.read(buffer, 0, length, place)
      window = buffer.subarray(0, bytesRead)
      from = place
      if (bytesRead < bytes) return undefined
    }
    return window.subarray(place - from, place - from + bytes)
  }
  const batchAt = async (place: number): Promise<{ size: number; offset: number; count: number } | undefined> => {
    const header = await need(place, At.records)
    if (header === undefined) return undefined
    const length = batchSize(header, 0)
    const offset = readOffset(header, 0)
    const whole = length === 0 || offset < 0 ? undefined : await need(place, length)
    if (whole === undefined || checksum(whole, 0, length) !== whole.readUInt32BE(At.crc)) return undefined
    return { size: length, offset, count: whole.readInt32BE(At.lastDelta) + 1 }
  }
  while (segment.bytes < size) {
    const batch = await batchAt(segment.bytes)
    if (batch === undefined || batch.offset !== segment.end) {
      if (until !== undefined) throw damaged(at, segment.end, `${segment.path} is damaged at byte ${segment.bytes}`)
      const header = await need(segment.bytes, At.records)
      const claimed = header === undefined ? 0 : batchSize(header, 0)
      const next = claimed === 0 ? undefined : await batchAt(segment.bytes + claimed)
      if (next !== undefined && next.offset > segment.end)
        throw damaged(at, segment.end, `${segment.path} is damaged at byte ${segment.bytes}`)
      return
    }
    extend(segment, batch.size, batch.count)
  }
}

/** Where to begin to read for `offset`: a batch at or before it. */
export function floor(segment: Segment, offset: number): number {
  const { index } = segment
  let low = 0
  let high = index.length - 1
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if ((index[middle]?.offset ?? 0) <= offset) low = middle
    else high = middle - 1
  }
  return index[low]?.at ?? headerSize
}
