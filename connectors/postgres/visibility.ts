import type { Transactions } from './source-queries.ts'
import { comparePositions, type Position } from '../../src/model.ts'

/**
 * Which transactions may be in the log and yet not visible: a commit that waits for a standby is streamed before a new
 * snapshot sees it. Holds those decoded lately, and those that were open when the stream began, whose place is unknown.
 */
interface Visibility {
  begin(after: Position, now: Transactions): void
  /** A transaction, or a message between transactions, was decoded. */
  readonly decoded: (position: Position, xid: number | undefined) => void
  /** Forgets the decoded ones that are visible by now; called about once a second. */
  prune(now: Transactions): void
  /** Whether a snapshot taken now sees all commits up to `position`. `before`: what was in progress when first asked. */
  all(position: Position, now: Transactions, before: Transactions): boolean
}

export function visibility(): Visibility {
  let decoded: { readonly position: Position; readonly xid: number }[] = []
  let unknown: Transactions | undefined
  let reached = '' as Position
  return {
    begin(after, now) {
      unknown = now
      reached = after
    },
    decoded(position, xid) {
      if (xid !== undefined) decoded.push({ position, xid })
      reached = position
    },
    prune(now) {
      decoded = decoded.filter(({ xid }) => isOpen(xid, now))
    },
    all(position, now, before) {
      const open = (xid: number): boolean => isOpen(xid, now)
      // Not decoded that far: any transaction that was open may lie before it.
      if (unknown === undefined || comparePositions(reached, position) < 0) return ![...before.inProgress].some(open)
      if ([...unknown.inProgress].some(open)) return false
      return !decoded.some(({ position: at, xid }) => comparePositions(at, position) <= 0 && open(xid))
    },
  }
}

/** Ids have 32 bits and go round: later means less than half of them ahead. */
export function isOpen(xid: number, { next, inProgress }: Transactions): boolean {
  return inProgress.has(xid) || ((xid - next) | 0) >= 0
}
