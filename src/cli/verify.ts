import { verdictOf, type Report, type TableReport } from '../verify/report.ts'
import type { DifferenceLine, Verdict } from '../verify/journal.ts'
import type { RepairReport } from '../verify/repair.ts'
import { formatCount, formatSeconds, pad, printable, shorten, widthOf, wrap } from './format.ts'
import { glyphs, type Paint, type Style } from './report.ts'

const words: Readonly<Record<Verdict, { readonly glyph: string; readonly style: Style; readonly word: string }>> = {
  equal: { glyph: glyphs.good, style: 'green', word: 'equal' },
  different: { glyph: glyphs.bad, style: 'red', word: 'different' },
  unknown: { glyph: glyphs.unknown, style: 'yellow', word: 'not verified' },
}
/** Exit codes of a verification. */
export const exitOf: Readonly<Record<Verdict, number>> = { equal: 0, different: 1, unknown: 3 }

function verdictText(verdict: Verdict, paint: Paint): string {
  const { glyph, style, word } = words[verdict]
  return paint(style, `${glyph} ${word}`)
}

/** `crossfade verify` and `verify report`. Ends with a line feed. */
export function renderReport(report: Report, { width, typed }: { width: number; typed: string }, paint: Paint): string {
  const { begin, tables, samples, end } = report
  const verdict = verdictOf(report)
  const lines = [`${paint('bold', begin.pipeline)}  ${verdictText(verdict, paint)}`]
  const rows = tables.reduce((sum, { source }) => sum + source, 0)
  const ended = end?.at ?? report.chunks.at(-1)?.at ?? begin.at
  lines.push(
    `  ${formatCount(rows)} rows of ${tables.length} tables, read from ${clock(begin.at)} to ${clock(ended)} in ${formatSeconds((ended - begin.at) / 1000)}${
      end !== undefined && end.throttledMs >= 1000 ? `, ${formatSeconds(end.throttledMs / 1000)} of it held back` : ''
    }`,
  )
  if (end === undefined)
    lines.push(`  ${paint('yellow', 'It did not come to its end')}: ${typed} verify goes on with it`)
  if (end?.why !== undefined) lines.push(...wrap(end.why, width - 2).map((line) => `  ${line}`))
  lines.push('', ...renderTables(tables, width, paint))
  if (samples.length > 0) {
    lines.push('')
    for (const sample of samples) lines.push(...renderDifference(sample, width, paint))
    const all = tables.reduce(
      (sum, { onlySource, onlyTarget, different }) => sum + onlySource + onlyTarget + different,
      0,
    )
    if (all > samples.length)
      lines.push(`  ${paint('dim', `${formatCount(all)} in all`)}: ${typed} verify report --json`)
    lines.push('', `  ${paint('dim', 'next')} ${paint('cyan', `${typed} repair --dry-run`)}`)
  }
  return `${lines.join('\n')}\n`
}

function renderTables(tables: readonly TableReport[], width: number, paint: Paint): readonly string[] {
  const names = tables.map(({ table }) => shorten(printable(table), Math.max(20, width - 50)))
  const column = Math.max(5, ...names.map(widthOf))
  const counts = tables.map(({ source, rangesDone }) => (rangesDone === 0 ? '-' : formatCount(source)))
  const most = Math.max(4, ...counts.map(widthOf))
  const head = `  ${pad('table', column)}  ${pad('rows', most, 'right')}`
  const lines = tables.flatMap((table, i) => {
    const line = `  ${pad(names[i] ?? '', column)}  ${pad(counts[i] ?? '', most, 'right')}  ${verdictText(table.verdict, paint)}`
    const about = [...found(table), ...progress(table)].join(', ')
    return [about === '' ? line : `${line}  ${about}`, ...why(table, width, paint)]
  })
  return [paint('dim', head), ...lines]
}

function found({ onlySource, onlyTarget, different, unsettled, transient }: TableReport): readonly string[] {
  return [
    ...(onlySource > 0 ? [`${formatCount(onlySource)} only at the source`] : []),
    ...(onlyTarget > 0 ? [`${formatCount(onlyTarget)} only at the target`] : []),
    ...(different > 0 ? [`${formatCount(different)} differ`] : []),
    ...(unsettled > 0 ? [`${formatCount(unsettled)} unsettled`] : []),
    ...(transient > 0 ? [`${formatCount(transient)} were under way`] : []),
  ]
}

function progress({ rangesDone, ranges }: TableReport): readonly string[] {
  return rangesDone === ranges ? [] : [`${formatCount(rangesDone)} of ${formatCount(ranges)} parts read`]
}

const why = ({ why }: TableReport, width: number, paint: Paint): readonly string[] =>
  why === undefined ? [] : wrap(printable(why), width - 6).map((line) => `      ${paint('yellow', line)}`)

function renderDifference(one: DifferenceLine, width: number, paint: Paint): readonly string[] {
  const key = one.key.map((text) => (text === null ? 'null' : printable(text))).join(', ')
  const told =
    one.what === 'only source'
      ? 'is only at the source'
      : one.what === 'only target'
        ? 'is only at the target'
        : one.what === 'copies'
          ? `is there ${one.copies?.[0] ?? 0} times at the source, ${one.copies?.[1] ?? 0} times at the target`
          : `differs in ${one.columns.map(({ name }) => printable(name)).join(', ')}`
  const checked = `first seen ${clock(one.firstSeen)}, checked again ${one.rechecks === 1 ? 'once' : `${one.rechecks} times`}, at ${printable(one.position)}`
  return [
    `  ${paint('red', glyphs.bad)} ${printable(one.table)} ${paint('bold', `(${shorten(key, Math.max(20, width - 40))})`)} ${told}`,
    `      ${paint('dim', checked)}`,
    ...one.columns.flatMap(({ name, source, target }) =>
      source === undefined && target === undefined
        ? []
        : [`      ${printable(name)}: ${value(source)} at the source, ${value(target)} at the target`],
    ),
  ]
}

function value(text: string | null | undefined): string {
  return text === undefined ? 'nothing' : text === null ? 'null' : JSON.stringify(text)
}

const clock = (at: number): string => `${new Date(at).toISOString().slice(11, 19)}Z`

/** One line while it runs. */
export function renderProgress({ tables, begin }: Report, now: number): string {
  const sum = (count: (table: TableReport) => number): number => tables.reduce((all, table) => all + count(table), 0)
  const estimated = begin.tables.reduce(
    (all, { ranges }) => all + ranges.reduce((rows, { estimatedRows }) => rows + estimatedRows, 0),
    0,
  )
  const rows = sum(({ source }) => source)
  const seconds = Math.max(0.001, (now - begin.at) / 1000)
  const differences = sum(({ onlySource, onlyTarget, different }) => onlySource + onlyTarget + different)
  const share = estimated === 0 ? '' : ` of about ${formatCount(estimated)}`
  return `${formatCount(rows)}${share} rows compared, ${formatCount(Math.round(rows / seconds))}/s${differences > 0 ? `, ${formatCount(differences)} differ` : ''}`
}

/** The document of `verify --json` and `verify report --json`. `all`: the differences. */
export function reportJson(report: Report, all: readonly DifferenceLine[]): unknown {
  const { begin, tables, end } = report
  return {
    v: 1,
    pipeline: begin.pipeline,
    verdict: verdictOf(report),
    why: end?.why ?? null,
    began: begin.at,
    ended: end?.at ?? null,
    throttledMs: end?.throttledMs ?? null,
    tables: tables.map(({ table, verdict, why, rangesDone, ranges, pieces, ...counts }) => ({
      table,
      verdict,
      why: why ?? null,
      coverage: ranges === 0 ? 0 : rangesDone / ranges,
      pieces,
      ...counts,
    })),
    differences: all.map((one) => ({ ...one, kind: undefined })),
  }
}

/** `crossfade repair`. Ends with a line feed. */
export function renderRepair(
  { pipeline, dryRun, verdict, tables, audit }: RepairReport,
  typed: string,
  paint: Paint,
): string {
  const name = paint('bold', pipeline)
  if (tables.length === 0) return `${name}  nothing to repair: the last verification found no row that differs\n`
  const column = Math.max(5, ...tables.map(({ table }) => widthOf(printable(table))))
  const lines = tables.map(({ table, copied, removed, written, right, different, unknown }) => {
    const parts = dryRun
      ? [`${formatCount(copied)} rows would be written as the source has them`, `${formatCount(removed)} removed`]
      : [
          `${formatCount(written)} written`,
          `${formatCount(right)} equal now`,
          ...(different > 0 ? [`${formatCount(different)} still differ`] : []),
          ...(unknown > 0 ? [`${formatCount(unknown)} unsettled`] : []),
        ]
    return `  ${pad(printable(table), column)}  ${parts.join(', ')}`
  })
  const next = dryRun ? `${typed} repair` : `${typed} verify --fresh`
  const head = dryRun ? `${name}  nothing is written` : `${name}  ${verdictText(verdict, paint)}`
  const told = dryRun ? [] : [`  ${paint('dim', 'every row written is told in')} ${audit}`]
  return `${[head, ...lines, ...told, `  ${paint('dim', 'next')} ${paint('cyan', next)}`].join('\n')}\n`
}
