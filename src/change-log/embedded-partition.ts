import { failpoint } from '../failpoint.ts'
import { open, readdir, stat, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import type { Epoch, TopicPartition } from '../model.ts'
import { asBuffer, batchSize, writeOffset } from './batch-layout.ts'
import type { EncodedBatch, FetchedBatch } from './change-log.ts'
import { errorCode, syncDirectory } from './directory-lock.ts'
import { damaged, logGap, readBatches } from './read-batches.ts'
import { stamp } from './record-batch.ts'
import { createSegment, extend, floor, headerSize, readSegmentHeader, scan, type Segment } from './segment.ts'

/** One partition in the files of a directory. Writes are one at a time; reads go on beside them. */
export interface EmbeddedPartition {
  readonly low: number
  readonly end: number
  /** Writes and syncs, visible to nobody yet. `commit` shows it, `undo` takes it back. */
  write(batch: EncodedBatch): Promise<{ commit(): void; undo(): Promise<void> }>
  /** What is there from `offset` on, about `bytes` of it; undefined at the end. LOG_GAP if it is not in the log. */
  read(offset: number, bytes: number): Promise<FetchedBatch | undefined>
  /** Removes whole old segments that were last written before `time` (ms since 1970), as long as `bytes` and the newest segment stay. */
  forget(time: number, bytes: number): Promise<void>
  close(): Promise<void>
}

const segmentBytes = 256 * 1024 * 1024
const lookEvery = 1000

/** Reads what is there: the newest segment with a whole header, and from it backwards those named as predecessors. */
export async function openPartition(dir: string, at: TopicPartition, epoch: Epoch): Promise<EmbeddedPartition> {
  const pattern = new RegExp(`^${at.partition}-(\\d{12}-\\d{6})\\.log$`)
  const pathOf = (id: string): string => join(dir, `${at.partition}-${id}.log`)
  const ids = (await readdir(dir)).flatMap((name) => pattern.exec(name)?.[1] ?? []).sort()
  const segments: Segment[] = []
  try {
    await load(at, pathOf, ids, segments)
  } catch (error) {
    for (const segment of segments) await segment.file.close()
    throw error
  }
  const gone: Segment[] = []
  let current: Segment | undefined
  let parts = 0
  const endOf = (): number => segments.at(-1)?.end ?? 0

  async function writable(): Promise<Segment> {
    if (current !== undefined && current.bytes < segmentBytes) return current
    const last = segments.at(-1)
    const id = `${String(epoch).padStart(12, '0')}-${String(parts).padStart(6, '0')}`
    const header = { predecessor: last?.id ?? '', predecessorBytes: last?.bytes ?? 0, base: endOf() }
    const made = await createSegment(id, pathOf(id), header)
    failpoint('log.between-segment-and-name')
    await syncDirectory(dir)
    failpoint('log.after-segment')
    parts++
    segments.push(made)
    current = made
    return made
  }

  let looked = performance.now()
  /** A file that was removed takes all that is written to it, for nobody. */
  async function demandThere(segment: Segment): Promise<void> {
    if (performance.now() - looked < lookEvery) return
    if ((await segment.file.stat()).nlink === 0) throw damaged(at, segment.end, `${segment.path} was removed`)
    looked = performance.now()
  }

  return {
    get low() {
      return segments[0]?.base ?? 0
    },
    get end() {
      return endOf()
    },
    async write(batch) {
      const segment = await writable()
      await demandThere(segment)
      const bytes = asBuffer(batch.bytes)
      writeOffset(bytes, segment.end, 0)
      stamp(batch, -1n, -1, -1)
      const undo = async (): Promise<void> => {
        await segment.file.truncate(segment.bytes).catch(() => {}) // the next write begins at the same place
      }
      try {
        for (let done = 0; done < bytes.length;) {
          const left = bytes.length - done
          done += (await segment.file.write(bytes, done, left, segment.bytes + done)).bytesWritten
        }
      } catch (error) {
        await undo()
        throw error
      }
      failpoint('log.between-write-and-sync')
      await segment.file.datasync().catch((error: unknown) => {
        throw new SyncError(segment.path, error)
      })
      return { commit: () => extend(segment, bytes.length, batch.count), undo }
    },
    async read(offset, bytes) {
      const end = endOf()
      const low = segments[0]?.base ?? 0
      if (offset < low || offset > end) throw logGap(at, offset, low, end)
      if (offset === end) return undefined
      const segment = segments.findLast((each) => each.base <= offset && each.end > offset)
      if (segment === undefined) throw damaged(at, offset, 'no segment holds it')
      let start = floor(segment, offset)
      const stop = segment.bytes
      for (let want = bytes; ;) {
        const length = Math.min(want, stop - start)
        const section = Buffer.allocUnsafeSlow(length)
        const { bytesRead } = await segment.file.read(section, 0, length, start)
        if (bytesRead < length) throw damaged(at, offset, `${segment.path} is shorter than it was`)
        const batch = readBatches(at, section, offset, end)
        if (batch.next > offset) return batch
        if (length === stop - start) throw damaged(at, offset, `${segment.path} ends within a record batch`)
        // Whole batches before the wanted one need not be read again; of one larger than was asked for the rest is.
        let skip = 0
        let size = batchSize(section, 0)
        for (; size > 0 && skip + size <= length; size = batchSize(section, skip)) skip += size
        start += skip
        want = Math.max(want, size)
      }
    },
    async forget(time, bytes) {
      for (const segment of gone.splice(0)) await segment.file.close()
      for (;;) {
        const [first, ...rest] = segments
        if (first === undefined || rest.length === 0) return
        if (rest.reduce((sum, segment) => sum + segment.bytes, 0) < bytes) return
        if ((await stat(first.path)).mtimeMs >= time) return
        segments.shift()
        gone.push(first) // a reading may be under way
        await unlink(first.path).catch((error: unknown) => {
          if (errorCode(error) !== 'ENOENT') throw error
        })
      }
    },
    async close() {
      for (const segment of [...segments, ...gone]) await segment.file.close()
    },
  }
}

/** Opens the newest segment with a whole header, and from it backwards those named as predecessors, oldest first in `segments`. */
async function load(
  at: TopicPartition,
  pathOf: (id: string) => string,
  ids: readonly string[],
  segments: Segment[],
): Promise<void> {
  let wanted: string | undefined
  let until: number | undefined
  for (const id of ids.toReversed()) {
    if (wanted !== undefined && id !== wanted) continue
    const file = await open(pathOf(id), 'r+')
    const header = await readSegmentHeader(file).catch(() => undefined)
    if (header === undefined) {
      await file.close()
      if (wanted !== undefined) throw damaged(at, -1, `${pathOf(id)} has no header`)
      continue
    }
    const successor = segments[0]
    const segment: Segment = {
      id,
      path: pathOf(id),
      file,
      base: header.base,
      end: header.base,
      bytes: headerSize,
      index: [],
    }
    segments.unshift(segment)
    await scan(at, segment, until)
    if (successor !== undefined && successor.base !== segment.end)
      throw damaged(at, segment.end, `${segment.path} ends before its successor begins`)
    if (header.predecessor === '') return
    wanted = header.predecessor
    until = header.predecessorBytes
  }
}

/** After a failed sync nobody knows what is on the disk. */
export class SyncError extends Error {
  constructor(path: string, cause: unknown) {
    super(`${path} could not be synced`, { cause })
  }
}
