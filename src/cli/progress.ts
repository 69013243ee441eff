import type { Status, TableStatus } from '../status.ts'
import { formatBytes, formatClock, formatCount, formatRange, formatShort, pad, printable, shorten } from './format.ts'
import { glyphs, type Paint, type Style } from './report.ts'

/** How far the copy is: parts of the tables' estimated rows, where a finished chunk counts whatever the estimate was. */
type CopyProgress = {
  readonly tablesDone: number
  readonly tables: number
  readonly rows: bigint
  readonly rowsInAll: bigint
  readonly chunksDone: number
  readonly chunks: number
  /** 0 to 1; 1 only once every chunk is done. */
  readonly share: number
}

export function copyProgress(tables: readonly TableStatus[]): CopyProgress {
  const sum = { tablesDone: 0, rows: 0n, rowsInAll: 0n, chunksDone: 0, chunks: 0, weight: 0, done: 0 }
  for (const table of tables) {
    const { rows, chunks, chunksDone, estimatedRows = 0n } = table
    const finished = chunks > 0 && chunksDone >= chunks
    if (finished) sum.tablesDone++
    sum.rows += rows
    sum.rowsInAll += finished || rows > estimatedRows ? rows : estimatedRows
    sum.chunksDone += chunksDone
    sum.chunks += chunks
    const weight = Math.max(1, Number(estimatedRows))
    const byRows = Math.min(0.99, Number(rows) / weight)
    sum.weight += weight
    sum.done += weight * (finished ? 1 : Math.max(byRows, chunks > 0 ? chunksDone / chunks : 0))
  }
  const complete = sum.tablesDone === tables.length
  const share = sum.weight === 0 ? 0 : complete ? 1 : Math.min(0.99, sum.done / sum.weight)
  return { ...sum, tables: tables.length, share }
}

/** Rate and time left from what was seen so far. `observe` at most a few times a second, `now` in ms. */
interface Pace {
  observe(status: Status, now: number): void
  readonly rowsPerSecond: number
  /** Seconds left by the faster and the slower of the recent and the long rate; undefined until enough was seen, or while nothing moves. */
  readonly left: readonly [number, number] | undefined
  readonly elapsed: number
}

const recently = 10_000
const longAgo = 120_000

export function pace(): Pace {
  type Sample = { readonly at: number; readonly rows: bigint; readonly share: number }
  let began: number | undefined
  let samples: Sample[] = []
  const since = (ms: number): readonly [Sample, Sample] | undefined => {
    const last = samples.at(-1)
    const first = samples.find(({ at }) => last !== undefined && at >= last.at - ms)
    return first && last && last.at > first.at ? [first, last] : undefined
  }
  const timeLeft = (ms: number): number => {
    const span = since(ms)
    if (!span) return Number.NaN
    const [first, last] = span
    return ((1 - last.share) * (last.at - first.at)) / ((last.share - first.share) * 1000)
  }
  return {
    observe(status, now) {
      began ??= now
      const { rows, share } = copyProgress(status.tables)
      if (now - (samples.at(-1)?.at ?? 0) >= 200) samples.push({ at: now, rows, share })
      if (samples.length > 1200 || now - (samples[0]?.at ?? now) > longAgo * 1.1)
        samples = samples.filter(({ at }) => at >= now - longAgo)
    },
    get rowsPerSecond() {
      const span = since(recently)
      return span ? (Number(span[1].rows - span[0].rows) * 1000) / (span[1].at - span[0].at) : 0
    },
    get left(): readonly [number, number] | undefined {
      const seen = since(longAgo)
      if (!seen || seen[1].at - seen[0].at < 2000) return undefined
      const recent = timeLeft(recently)
      const long = timeLeft(longAgo)
      if (!Number.isFinite(recent) || !Number.isFinite(long)) return undefined
      // Nothing is known better than by a tenth.
      return [Math.min(recent, long) * 0.95, Math.max(recent, long) * 1.05]
    },
    get elapsed() {
      return began === undefined ? 0 : ((samples.at(-1)?.at ?? began) - began) / 1000
    },
  }
}

const tableGlyphs: Readonly<Record<TableStatus['state'], readonly [string, Style]>> = {
  copying: [glyphs.busy, 'blue'],
  'catching up': [glyphs.busy, 'blue'],
  waiting: [glyphs.rest, 'dim'],
  stopped: [glyphs.bad, 'red'],
  copied: ['✓', 'blue'],
  live: [glyphs.good, 'green'],
}
/** What changes is shown first. */
const tableOrder: readonly TableStatus['state'][] = ['stopped', 'copying', 'catching up', 'waiting', 'copied', 'live']

const verdicts: Readonly<Record<Status['verdict'], readonly [string, Style]>> = {
  ok: [glyphs.good, 'green'],
  idle: [glyphs.idle, 'green'],
  behind: [glyphs.warning, 'yellow'],
  unknown: [glyphs.unknown, 'magenta'],
  failed: [glyphs.bad, 'red'],
}

export function renderVerdict(status: Status, paint: Paint): string {
  const [glyph, style] = verdicts[status.verdict]
  return paint(style, `${glyph} ${status.verdict}`)
}

/** Never a number that is not proved. */
function lagText({ lag, target }: Status, now: number): string {
  if (lag.proved && lag.seconds !== null) return `lag ${lag.seconds.toFixed(1)} s`
  if (target.watermarkAt === null) return 'lag unknown'
  return `lag unknown, proved up to ${formatClock(Math.max(0, (now - target.watermarkAt) / 1000))} ago`
}

/** What a complete `full` copy holds. */
export function copiedText(tables: readonly TableStatus[]): string {
  const rows = tables.reduce((sum, table) => sum + table.rows, 0n)
  return `${tables.length} table${tables.length === 1 ? '' : 's'}, ${formatCount(rows)} row${rows === 1n ? '' : 's'}: one exact state of the source`
}

/** The live view of a run: at most `height` lines of at most `width`. */
export function renderFrame(
  status: Status,
  seen: Pace,
  { width, height, now }: { readonly width: number; readonly height: number; readonly now: number },
  paint: Paint,
): readonly string[] {
  // Before anything streams there is no lag to speak of.
  const early = status.phase === 'starting' || status.phase === 'standby' || status.phase === 'copying'
  const complete = status.phase === 'complete'
  const verdict = early ? [] : [renderVerdict(status, paint), ...(complete ? [] : [lagText(status, now)])]
  const lines = [[paint('bold', status.pipeline), status.phase, ...verdict, formatClock(seen.elapsed)].join('  ')]
  const copy = copyProgress(status.tables)
  if (complete) lines.push(shorten(`  ${copiedText(status.tables)}`, width))
  else if (copy.tables > 0 && copy.share < 1) {
    lines.push(bar(copy.share, width, paint, leftText(seen)))
    lines.push(
      `  ${copy.tablesDone} of ${copy.tables} tables  ${copy.chunksDone} of ${copy.chunks} chunks  ${formatShort(copy.rows)} of ~${formatShort(copy.rowsInAll)} rows  ${formatShort(Math.round(seen.rowsPerSecond))} rows/s`,
    )
  }
  if (!complete) lines.push(changesLine(status, width))
  if (status.phase === 'stopping')
    lines.push(shorten('  what is in hand is finished first; Ctrl-C once more to stop at once', width))
  const { error } = status
  if (error) {
    const text = [error.facts.object, error.facts.observed].filter((part) => part !== undefined).join(': ')
    const after = error.retrying ? '; trying again' : ''
    lines.push(
      paint(
        error.retrying ? 'yellow' : 'red',
        shorten(`${glyphs.warning} ${error.code}  ${printable(text).replaceAll('\n', ' ')}${after}`, width),
      ),
    )
  }
  const room = height - lines.length - 1
  lines.push(...renderTables(status.tables, { width, room }, paint))
  return lines
}

const leftText = (seen: Pace): string => (seen.left ? `ETA ${formatRange(...seen.left)}` : 'ETA not known yet')

function bar(share: number, width: number, paint: Paint, after: string): string {
  const text = `${String(Math.floor(share * 100)).padStart(3)} %  ${after}`
  const length = Math.max(10, Math.min(60, width - text.length - 6))
  const full = Math.round(share * length)
  return `  ${paint('blue', '━'.repeat(full))}${paint('dim', '─'.repeat(length - full))}  ${text}`
}

/** As much as fits, the most telling first. */
function changesLine({ rates, totals, lag, source }: Status, width: number): string {
  const parts = [`read ${perSecond(rates?.read)}`, `applied ${perSecond(rates?.applied)}`]
  if (lag.records !== null && lag.records > 0n) parts.push(`${formatShort(lag.records)} waiting`)
  if (totals) parts.push(`${formatCount(totals.applied)} changes applied`)
  if (source.retainedBytes !== null) parts.push(`source keeps ${formatBytes(source.retainedBytes)}`)
  return parts.reduce((line, part) => (line.length + 2 + part.length > width ? line : `${line}  ${part}`), '')
}

/** A line per table, what changes first; what does not fit is counted. */
export function renderTables(
  tables: readonly TableStatus[],
  { width, room }: { readonly width: number; readonly room: number },
  paint: Paint,
): readonly string[] {
  if (tables.length === 0 || room < 2) return []
  const sorted = tables.toSorted((a, b) => tableOrder.indexOf(a.state) - tableOrder.indexOf(b.state))
  const fits = sorted.length + 1 <= room ? sorted.length : room - 2
  const shown = sorted.slice(0, fits)
  const nameWidth = Math.min(width - 51, Math.max(5, ...shown.map(({ name }) => name.length)))
  const columns = (name: string, state: string, chunks: string, rows: string): string =>
    `${pad(name, nameWidth)}  ${pad(state, 11)}  ${pad(chunks, 11, 'right')}  ${pad(rows, 18, 'right')}`.trimEnd()
  const lines = [paint('dim', `  ${columns('TABLE', 'STATE', 'CHUNKS', 'ROWS')}`)]
  for (const table of shown) {
    const [glyph, style] = tableGlyphs[table.state]
    const { chunks, chunksDone, rows, estimatedRows } = table
    const all =
      estimatedRows !== undefined && (chunks === 0 || chunksDone < chunks) ? ` of ~${formatShort(estimatedRows)}` : ''
    const done = chunks === 0 ? '-' : `${chunksDone}/${chunks}`
    const amount = rows === 0n && all === '' ? '-' : `${all === '' ? formatCount(rows) : formatShort(rows)}${all}`
    const name = shorten(printable(table.name), nameWidth)
    lines.push(`${paint(style, glyph)} ${columns(name, table.state, done, amount)}`)
  }
  if (fits < sorted.length) {
    const rest = sorted.slice(fits)
    const live = rest.filter(({ state }) => state === 'live').length
    const what = live === rest.length ? 'live' : `${live} of them live`
    lines.push(paint('dim', `  and ${rest.length} more tables, ${what}`))
  }
  return lines
}

/** One line for logs and pipes. */
export function renderLine(status: Status, seen: Pace, now: number): string {
  if (status.phase === 'complete') return `${status.pipeline} complete | ${copiedText(status.tables)}`
  const copy = copyProgress(status.tables)
  const parts = [`${status.pipeline} ${status.phase}`]
  if (copy.tables > 0 && copy.share < 1) {
    parts.push(
      `${Math.floor(copy.share * 100)} %, ${copy.tablesDone} of ${copy.tables} tables, ${copy.chunksDone} of ${copy.chunks} chunks, ${formatShort(copy.rows)} of ~${formatShort(copy.rowsInAll)} rows, ${formatShort(Math.round(seen.rowsPerSecond))} rows/s`,
      leftText(seen),
    )
  }
  const waiting = status.lag.records ?? 0n
  parts.push(
    `${status.verdict}, ${lagText(status, now)}`,
    `read ${perSecond(status.rates?.read)}, applied ${perSecond(status.rates?.applied)}${waiting > 0n ? `, ${formatShort(waiting)} waiting` : ''}`,
  )
  if (status.error) parts.push(`${status.error.code}${status.error.retrying ? ', trying again' : ''}`)
  return parts.join(' | ')
}

function perSecond(rate: number | undefined): string {
  return `${formatShort(Math.round(rate ?? 0))}/s`
}
