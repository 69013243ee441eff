import { comparePositions, type Epoch, type Position } from '../model.ts'

/** What was admitted last in a partition. */
export type Seen = { readonly position: Position; readonly seq: number; readonly epoch: Epoch }
/** `zombie`: from a capture that has a successor here. `repeat`: a re-sent record, or one that landed late. */
export type Admission = 'new' | 'repeat' | 'zombie'

/** Whether a record counts; changes and control records with a mark alike. By mark alone a zombie's later record would hide the successor's earlier one. */
export function admit(seen: Seen, position: Position, seq: number, epoch: Epoch): Admission {
  if (epoch < seen.epoch) return 'zombie'
  const order = position === seen.position ? 0 : comparePositions(position, seen.position)
  return order > 0 || (order === 0 && seq > seen.seq) ? 'new' : 'repeat'
}
