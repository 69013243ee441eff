import type { Status } from '../status.ts'
import { statusJson } from '../status.ts'
import { pace, renderFrame, renderLine } from './progress.ts'
import type { Paint } from './report.ts'

export type Screen = {
  readonly write: (text: string) => void
  readonly isTTY: boolean
  readonly columns: number
  readonly rows: number
}
/** Shows a run. `show` may be called as often as there is news; what is drawn is bounded here. `end` leaves the last state standing. */
interface Live {
  show(status: Status): void
  end(): void
}

const frameEvery = 200
const lineEvery = 5000
const jsonEvery = 1000

/** Redraws in place on a terminal, else writes a line every few seconds and whenever the phase changes; with `json` a document a line. */
export function live(
  screen: Screen,
  paint: Paint,
  { json, clock = Date.now }: { readonly json: boolean; readonly clock?: () => number },
): Live {
  const seen = pace()
  let drawn = 0
  let last: { readonly status: Status; readonly at: number } | undefined
  let newest: Status | undefined
  const inPlace = screen.isTTY && !json

  const draw = (status: Status): void => {
    const now = clock()
    last = { status, at: now }
    if (json) screen.write(`${JSON.stringify(statusJson(status))}\n`)
    else if (inPlace) {
      const size = { width: screen.columns, height: screen.rows, now }
      const lines = renderFrame(status, seen, size, paint)
      // Up to where the last frame began, and away with it: in one write, so that nothing flickers.
      const up = drawn > 0 ? `\u001b[${drawn}A` : ''
      screen.write(`\u001b[?7l${up}\r\u001b[J${lines.join('\n')}\n\u001b[?7h`)
      drawn = lines.length
    } else screen.write(`${new Date(now).toISOString().slice(11, 19)}  ${renderLine(status, seen, now)}\n`)
  }
  const every = json ? jsonEvery : inPlace ? frameEvery : lineEvery
  return {
    show(status) {
      const now = clock()
      newest = status
      seen.observe(status, now)
      const changed =
        last === undefined || last.status.phase !== status.phase || last.status.error?.code !== status.error?.code
      if (changed || now - (last?.at ?? 0) >= every) draw(status)
    },
    end() {
      if (newest && newest !== last?.status) draw(newest)
    },
  }
}
