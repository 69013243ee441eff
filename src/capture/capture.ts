import { decodeControl, isControl } from '../avro/control.ts'
import type { ChangeLog, FetchedBatch } from '../change-log/change-log.ts'
import { controlTopic } from '../change-log/topics.ts'
import type { ChangeStream, Source, SourceEvent } from '../connector.ts'
import type { Lease } from '../coordinate/lease.ts'
import { asFailure, Failure } from '../errors.ts'
import { failpoint } from '../failpoint.ts'
import {
  comparePositions,
  origin,
  partitionName,
  type Epoch,
  type Offset,
  type Position,
  type Watermark,
} from '../model.ts'
import { newestPublished, type Place } from './published.ts'
import type { Publisher } from './publisher.ts'

/** Source to log to acknowledgement, until `stop` aborts: what is in hand then is sent and acknowledged. One round is in flight while the next is
 *  filled. Rejects with the first failure; what was not acknowledged comes again from the next capture, under a higher epoch. */
export async function capture(
  source: Source,
  log: ChangeLog,
  publisher: Publisher,
  place: Place,
  { signal }: Pick<Lease, 'signal'>,
  stop: AbortSignal,
): Promise<void> {
  await using stream = await source.changes(place.after, signal)
  failpoint('capture.before-opening')
  const opened: Offset[] = []
  for (const round of publisher.opening()) {
    const ends = await log.append(round, signal)
    publisher.landed(ends)
    opened.push(...ends)
    failpoint('capture.in-opening')
  }
  const published = await newestPublished(log, place, opened, signal)
  await stream.demandHeld?.(published)
  publisher.goOn(published)
  let inFlight: Promise<void> = Promise.resolve()
  const send = async (): Promise<void> => {
    do {
      const { round, proved } = publisher.take()
      if (round.length === 0) return
      failpoint('capture.before-append')
      publisher.landed(await log.append(round, signal))
      failpoint('capture.between-append-and-ack')
      if (proved !== undefined) stream.ack(proved)
      failpoint('capture.after-ack')
    } while (publisher.due)
  }
  for await (const event of untilStopped(stream, stop)) {
    publisher.add(event)
    if (stream.waiting && !publisher.full) continue
    await inFlight
    inFlight = send()
    inFlight.catch(() => {}) // reported by the await above
  }
  await inFlight
  while (!publisher.idle) await send()
}

/** The stream's events; ends after `stop`, without waiting for the pull that is under way. */
async function* untilStopped(stream: ChangeStream, stop: AbortSignal): AsyncIterable<SourceEvent> {
  // Not a race with one promise for all pulls: it would remember each of them, and what it brought, until the stop.
  let wake: (() => void) | undefined
  const onStop = (): void => wake?.()
  if (stop.aborted) return
  stop.addEventListener('abort', onStop, { once: true })
  try {
    const events = stream[Symbol.asyncIterator]()
    while (!stop.aborted) {
      // A pull that nobody waits for any more ends when the stream is disposed of.
      const next = await new Promise<IteratorResult<SourceEvent> | undefined>((resolve, reject) => {
        wake = () => resolve(undefined)
        events.next().then(resolve, reject)
      })
      if (next === undefined || next.done === true) return
      yield next.value
    }
  } finally {
    stop.removeEventListener('abort', onStop)
  }
}

/** Control records looked at from the end: full vectors come once a minute, watermarks about once a second. */
const tail = 4096

/** `epoch`: the highest anyone captured under (0: none). `ends`: how far the log reached at least, as the watermarks say that count, the last of them
 *  of epoch `vouchedIn`; `published`: the newest place before. */
export type Tail = {
  readonly epoch: Epoch
  readonly watermark: Watermark | undefined
  readonly ends: readonly Offset[]
  readonly vouchedIn: Epoch
  readonly published: Position
}

/** What the control topic's tail says (H12, H14). LOG_GAP if its watermarks have been removed: nobody knows then what was published. */
export async function readTail(log: ChangeLog, pipeline: string, signal: AbortSignal): Promise<Tail> {
  const at = { topic: controlTopic(pipeline), partition: 0 }
  const end = (await log.ends([at], signal))[0]?.offset ?? 0
  const ends = new Map<string, Offset>()
  let epoch = 0
  let vouchedIn = 0
  let published = origin
  let watermark: Watermark | undefined
  let removed = false
  let offset = Math.max(0, end - tail)
  while (offset < end) {
    let fetched: readonly FetchedBatch[]
    try {
      fetched = await log.fetch([{ ...at, offset }], 1000, signal)
    } catch (error) {
      if (asFailure(error).code !== 'LOG_GAP') throw error
      offset = end - Math.floor((end - offset) / 2) // older records have expired
      removed = true
      continue
    }
    for (const batch of fetched) {
      for (let i = 0; i < batch.count; i++) {
        const start = batch.bounds[4 * i + 2] ?? -1
        if (start < 0) continue
        const value = batch.bytes.subarray(start, batch.bounds[4 * i + 3])
        if (!isControl(value)) continue
        const record = decodeControl(value)
        if (record.epoch < epoch) continue
        epoch = record.epoch
        if (record.kind !== 'watermark') continue
        if (record.full) ends.clear() // of tables that were left out since, whose topics are their owner's
        for (const each of record.ends) ends.set(partitionName(each), each)
        vouchedIn = epoch
        if (comparePositions(record.published, published) > 0) published = record.published
        if (watermark === undefined || comparePositions(record.position, watermark.position) > 0) watermark = record
      }
      offset = batch.next
    }
  }
  if (watermark === undefined && removed) {
    throw new Failure('LOG_GAP', {
      object: `topic ${at.topic}`,
      observed: `its records before offset ${end} were removed, the last watermark among them`,
      needed: 'the last watermark: it says up to where the source was published',
      effect: 'nothing is captured: going on without it could leave changes out',
      next: `Copy again under another pipeline name, and let nobody remove records of ${at.topic}`,
    })
  }
  return { epoch, watermark, ends: [...ends.values()], vouchedIn, published }
}

/** H23: a log that ends before a place it is known to have reached has lost what stood there, and what is appended now would take its place. Asked
 *  before the first append of a capture. `reached`: by watermarks and by what is applied. LOG_DAMAGED. */
export function demandEnds(ends: readonly Offset[], reached: readonly Offset[]): void {
  const found = new Map(ends.map((end) => [partitionName(end), end.offset]))
  for (const { topic, partition, offset } of reached) {
    const end = found.get(partitionName({ topic, partition }))
    if (end === undefined || end >= offset) continue
    throw new Failure('LOG_DAMAGED', {
      object: `topic ${topic}, partition ${partition}`,
      observed: `it ends at offset ${end}, and reached to ${offset} before`,
      needed: 'every record that was acknowledged',
      effect: 'nothing is captured: new records would take the place of the lost ones',
      next: 'An unclean election, or a broker that came back with older data: bring the newer replica back, or copy again under another pipeline name',
    })
  }
}
