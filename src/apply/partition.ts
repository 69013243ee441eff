import type { FetchedBatch } from '../change-log/change-log.ts'
import {
  comparePositions,
  origin,
  partitionName,
  type Barrier,
  type Checkpoint,
  type Epoch,
  type Position,
} from '../model.ts'
import { admit, type Admission } from './admit.ts'

/** Higher than the number of any change. */
export const lastSeq: number = Number.MAX_SAFE_INTEGER
/** Changes [from, to) of what has arrived. */
export type Span = { readonly from: number; readonly to: number }
/** Why a partition is not read on: a change after its hold, a barrier, or its claim is gone. */
type Stand = 'hold' | 'barrier' | 'lost'

/** One partition as a lane reads it: ahead of its checkpoint by what has arrived and is not applied. */
export class Partition {
  readonly name: string
  /** As committed. */
  at: Checkpoint
  /** Read up to here, with what was admitted last. */
  read: number
  position: Position
  seq: number
  epoch: Epoch
  stand: Stand | undefined
  barrier: Barrier | undefined
  /** The standing arrival was offered since the last pull. */
  offered = false
  /** Arrived and not applied, in order. */
  spans: Span[] = []
  /** Read anew from the checkpoint once the step in hand is settled. */
  again = false
  /** Index of the run the next change may belong to; -1: none. */
  run = -1
  /** The offset the pull under way was asked for; -1: what it brings is of no use. */
  #asked = -1
  #bytes: Uint8Array = new Uint8Array(0)

  constructor(at: Checkpoint) {
    this.name = partitionName(at)
    this.at = at
    this.read = at.offset
    this.position = at.mark.position
    this.seq = at.mark.seq
    this.epoch = at.captureEpoch
  }

  /** Drops everything that is not committed, and stands no more. */
  rewind(at: Checkpoint): void {
    this.at = at
    this.read = at.offset
    this.position = at.mark.position
    this.seq = at.mark.seq
    this.epoch = at.captureEpoch
    this.stand = undefined
    this.barrier = undefined
    this.offered = false
    this.again = false
    this.spans = []
    this.#asked = -1
    this.#bytes = new Uint8Array(0)
  }

  ask(): { readonly topic: string; readonly partition: number; readonly offset: number } {
    this.#asked = this.read
    return { topic: this.at.topic, partition: this.at.partition, offset: this.read }
  }

  /** Whether a pull's batch goes on where this one was read to. */
  expects(): boolean {
    return this.stand === undefined && this.#asked === this.read
  }

  /** The position in these bytes; the same string as long as it does not change. */
  positionAt(batch: FetchedBatch, start: number, end: number): Position {
    const { bytes } = batch
    const known = this.#bytes
    let same = known.length === end - start
    for (let i = 0; same && i < known.length; i++) same = known[i] === bytes[start + i]
    if (same && known.length > 0) return this.#last
    this.#bytes = Uint8Array.from(bytes.subarray(start, end))
    return (this.#last = Buffer.from(this.#bytes).toString() as Position)
  }
  #last: Position = origin

  admit(position: Position, seq: number, epoch: Epoch): Admission {
    return admit(this, position, seq, epoch)
  }

  /** Whether a change at this position waits. */
  holds(position: Position): boolean {
    return this.at.hold !== undefined && comparePositions(position, this.at.hold) > 0
  }

  /** Stands before a change after the hold: everything up to the hold is admitted, which the checkpoint is to say. */
  standAtHold(): void {
    const { hold } = this.at
    this.stand = 'hold'
    if (hold === undefined || hold === origin || comparePositions(this.position, hold) > 0) return
    this.position = hold
    this.seq = lastSeq
  }

  /** As it is read. */
  reached(): Checkpoint {
    return { ...this.at, offset: this.read, mark: { position: this.position, seq: this.seq }, captureEpoch: this.epoch }
  }

  /** Something to commit, be it only that records were passed over. */
  get moved(): boolean {
    const { at } = this
    return (
      this.read !== at.offset ||
      this.seq !== at.mark.seq ||
      this.position !== at.mark.position ||
      this.epoch !== at.captureEpoch
    )
  }
}
