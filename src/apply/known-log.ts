import { decodeControl } from '../avro/control.ts'
import { readPrefix } from '../avro/decoder.ts'
import { emptyPrefix, type Prefix } from '../avro/plan.ts'
import type { ChangeLog, FetchedBatch } from '../change-log/change-log.ts'
import { asFailure, Failure } from '../errors.ts'
import { compareMarks, partitionName, type Checkpoint, type Epoch, type Mark, type Position } from '../model.ts'

/** How long, in ms, one pull waits for a log that is slow to answer; asked again until the signal aborts. */
const maxWait = 1000

/** Whether this is the log that the checkpoints were taken from (H23): none lies beyond its end, and the record before each, where retention has left
 *  it, is one that its checkpoint explains. LOG_DAMAGED otherwise: the log was restored, filled anew or lost its end, and what follows is not what
 *  the target lacks. One lane's, right after its claim: a few questions for all its partitions at once. */
export async function demandKnown(
  log: ChangeLog,
  checkpoints: readonly Checkpoint[],
  signal: AbortSignal,
): Promise<void> {
  let left = checkpoints.filter(({ offset }) => offset > 0)
  if (left.length === 0) return
  const ends = await log.ends(left, signal)
  left.forEach((checkpoint, i) => {
    const end = ends[i]?.offset ?? 0
    if (checkpoint.offset > end) throw shorter(checkpoint, end)
  })
  left = await withRecord(log, left, signal)
  while (left.length > 0) {
    let fetched: readonly FetchedBatch[]
    try {
      const before = left.map(({ topic, partition, offset }) => ({ topic, partition, offset: offset - 1 }))
      fetched = await log.fetch(before, maxWait, signal)
    } catch (error) {
      if (asFailure(error).code !== 'LOG_GAP') throw error
      const still = await withRecord(log, left, signal) // retention goes on meanwhile
      if (still.length === left.length) throw error
      left = still
      continue
    }
    const seen = new Map(fetched.map((batch) => [partitionName(batch), batch]))
    left = left.filter((checkpoint) => {
      const batch = seen.get(partitionName(checkpoint))
      if (batch === undefined) return true
      demandExplained(checkpoint, batch)
      return false
    })
  }
}

async function withRecord(
  log: ChangeLog,
  checkpoints: readonly Checkpoint[],
  signal: AbortSignal,
): Promise<Checkpoint[]> {
  const lows = await log.lows(checkpoints, signal)
  return checkpoints.filter(({ offset }, i) => offset > (lows[i]?.offset ?? 0))
}

/** What was passed over or applied before the checkpoint: of no later mark unless of an earlier capture, and of no later capture. */
function demandExplained(checkpoint: Checkpoint, batch: FetchedBatch): void {
  if (batch.count === 0 || batch.offsets[0] !== checkpoint.offset - 1) return
  const record = stampOf(batch)
  if (record === undefined) return
  const { mark, captureEpoch } = checkpoint
  const { epoch } = record
  if (epoch < captureEpoch) return
  if (epoch === captureEpoch && (record.mark === undefined || compareMarks(record.mark, mark) <= 0)) return
  throw new Failure('LOG_DAMAGED', {
    object: partitionName(checkpoint),
    observed: `the record at offset ${checkpoint.offset - 1} is of ${spoken(record.mark, epoch)}, but the target has applied the log before offset ${checkpoint.offset} and has seen nothing after ${spoken(mark, captureEpoch)}`,
    needed: 'the records that the target has applied',
    effect: 'nothing more is applied',
    next: 'The topic was restored or filled anew: bring back the log as it was, or copy again under another pipeline name',
  })
}

/** Mark and epoch of the first record; undefined for one that is not ours. */
function stampOf(batch: FetchedBatch): { readonly mark?: Mark; readonly epoch: Epoch } | undefined {
  const prefix = emptyPrefix()
  const kind = kindOf(batch, prefix)
  if (kind === 'none') return undefined
  if (kind === 'control') {
    const record = decodeControl(batch.bytes.subarray(batch.bounds[2], batch.bounds[3]))
    return record.kind === 'barrier' ? record : { epoch: record.epoch }
  }
  const position = Buffer.from(batch.bytes.subarray(prefix.positionStart, prefix.positionEnd)).toString() as Position
  return { mark: { position, seq: prefix.seq }, epoch: prefix.epoch }
}

/** What cannot be read as one of ours no lane passes over: only a table that was taken in anew begins behind it. */
function kindOf(batch: FetchedBatch, prefix: Prefix): ReturnType<typeof readPrefix> {
  try {
    return readPrefix(batch, 0, prefix)
  } catch (error) {
    if (asFailure(error).code === 'LOG_DAMAGED') return 'none'
    throw error
  }
}

function shorter(checkpoint: Checkpoint, end: number): Failure {
  return new Failure('LOG_DAMAGED', {
    object: partitionName(checkpoint),
    observed: `it ends at offset ${end}, but the target has applied it up to offset ${checkpoint.offset}`,
    needed: 'a log that holds at least what the target has applied',
    effect: 'nothing more is applied',
    next: 'The topic was restored or filled anew: bring back the log as it was, or copy again under another pipeline name',
  })
}

function spoken({ position, seq }: Mark = { position: '' as Position, seq: 0 }, epoch: Epoch): string {
  return position === '' ? `epoch ${epoch}` : `position ${position}, number ${seq}, epoch ${epoch}`
}
