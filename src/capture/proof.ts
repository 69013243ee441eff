import { comparePositions, origin, type Position } from '../model.ts'

export type Wish = { readonly position: Position; readonly committedAt: number }
/** Decides which watermark may be written: only one whose position is wholly in rounds that landed before (H14). Pure; rounds are numbered in the
 *  order they are sent, and land in that order. */
interface Proof {
  /** A watermark at this position is wanted; everything up to it goes into rounds up to `round` (-1: nothing was ever added). Positions rise, repeats
   *  are ignored. */
  wish(wish: Wish, round: number): void
  /** Everything in rounds up to `round` is durable. */
  landed(round: number): void
  /** A watermark can be written now. */
  readonly due: boolean
  /** The newest watermark that can be written; older wishes are covered by it. */
  take(): Wish | undefined
}

export function createProof(): Proof {
  let durable = -1
  let newest: Position = origin
  let wishes: { readonly wish: Wish; readonly round: number }[] = []
  return {
    wish(wish, round) {
      if (comparePositions(wish.position, newest) <= 0) return
      newest = wish.position
      // Of the wishes that wait for the same round only the newest counts: the list stays as short as the rounds on their way.
      if (wishes.at(-1)?.round === round) wishes.pop()
      wishes.push({ wish, round })
    },
    landed(round) {
      durable = round
    },
    get due() {
      const [first] = wishes
      return first !== undefined && first.round <= durable
    },
    take() {
      const ready = wishes.findLast(({ round }) => round <= durable)
      wishes = wishes.filter(({ round }) => round > durable)
      return ready?.wish
    },
  }
}
