import { verdictOf, type Report, type TableReport } from '../verify/report.ts'
import type { DifferenceLine, Verdict } from '../verify/journal.ts'
import { renderShapes } from './shapes.ts'
import type { RepairReport, RepairTable } from '../verify/repair.ts'
import { codes, type ErrorCode } from '../errors.ts'
import { formatCount, formatSeconds, formatShort, pad, printable, shorten, widthOf, wrap } from './format.ts'
import { glyphs, verdictText, words, type Paint } from './report.ts'

/** Exit codes of a verification. */
export const exitOf: Readonly<Record<Verdict, number>> = { equal: 0, different: 1, unknown: 3 }

type Shown = { readonly width: number; readonly typed: string }
/** Lines of tables that are equal, of others, and of differences: of a table and in all. The rest is counted. */
const most = { equal: 20, others: 40, ofTable: 5, differences: 30 } as const

/** `crossfade verify` and `verify report`. Ends with a line feed. */
export function renderReport(report: Report, shown: Shown, paint: Paint): string {
  const { begin, tables, shapes, end } = report
  const { width, typed } = shown
  const verdict = verdictOf(report)
  const lines = [`${paint('bold', begin.pipeline)}  ${verdictText(verdict, paint)}`]
  if (tables.length === 0) {
    lines.push('  rows were not compared', '', ...renderShapes(shapes, shown, paint))
    return `${lines.join('\n')}\n`
  }
  const ended = end?.at ?? report.chunks.at(-1)?.at ?? begin.at
  const heldBack =
    end === undefined || end.throttledMs < 1000 ? '' : `, ${formatSeconds(end.throttledMs / 1000)} of it held back`
  const compared = `${counted(
    total(tables, ({ source }) => source),
    'row',
  )} of ${counted(tables.length, 'table')}`
  const took = `(${formatSeconds((ended - begin.at) / 1000)}${heldBack})`
  lines.push(...wrap(`${compared}, ${span(begin.at, ended)} ${took}`, width - 2).map(indented))
  if (end === undefined)
    lines.push(`  ${paint('yellow', 'It did not come to its end')}: ${typed} verify goes on with it`)
  else if (end.why !== undefined) lines.push(...reason(end.why, 2, shown, paint))
  if (begin.others !== undefined)
    lines.push(
      `  ${paint('yellow', `${counted(begin.others, 'other table')} of the pipeline ${begin.others === 1 ? 'was' : 'were'} not asked for`)}`,
    )
  lines.push('', ...renderTables(tables, shown, paint), ...renderDifferences(report, shown, paint))
  lines.push('', ...renderShapes(shapes, shown, paint))
  if (tables.some(differs)) lines.push('', `  ${paint('dim', 'next')} ${paint('cyan', `${typed} repair --dry-run`)}`)
  return `${lines.join('\n')}\n`
}

const order: readonly Verdict[] = ['different', 'unknown', 'equal']
const differs = (table: TableReport): boolean => differencesOf(table) > 0
const differencesOf = ({ onlySource, onlyTarget, different }: TableReport): number =>
  onlySource + onlyTarget + different
const total = <T>(tables: readonly T[], count: (table: T) => number): number =>
  tables.reduce((sum, table) => sum + count(table), 0)
const counted = (count: number, what: string): string => `${formatCount(count)} ${what}${count === 1 ? '' : 's'}`
const indented = (line: string): string => `  ${line}`

/** What is wrong first; what does not fit is counted. */
function renderTables(tables: readonly TableReport[], shown: Shown, paint: Paint): readonly string[] {
  const sorted = order.map((verdict) => tables.filter((table) => table.verdict === verdict))
  const listed = sorted.flatMap((some) => some.slice(0, some[0]?.verdict === 'equal' ? most.equal : most.others))
  const names = listed.map(({ table }) => shorten(oneLine(table), Math.max(20, shown.width - 50)))
  const column = Math.max(5, ...names.map(widthOf))
  const counts = listed.map(({ source, rangesDone }) => (rangesDone === 0 ? '-' : formatCount(source)))
  const digits = Math.max(4, ...counts.map(widthOf))
  const lines = listed.flatMap((table, i) => {
    const before = `  ${pad(names[i] ?? '', column)}  ${pad(counts[i] ?? '', digits, 'right')}`
    const about = [...(differs(table) ? [] : [words[table.verdict].word]), ...found(table), ...progress(table)]
    const [first = '', ...more] = wrap(about.join(', '), Math.max(20, shown.width - widthOf(before) - 4))
    const { glyph, style } = words[table.verdict]
    return [
      `${before}  ${paint(style, `${glyph} ${first}`)}`,
      ...more.map((line) => `${' '.repeat(widthOf(before) + 4)}${paint(style, line)}`),
      ...(table.why === undefined ? [] : reason(table.why, 6, shown, paint)),
    ]
  })
  const rest = sorted.flatMap((some) => {
    const left = some.length - listed.filter(({ verdict }) => verdict === some[0]?.verdict).length
    return some[0] === undefined || left === 0 ? [] : `${formatCount(left)} more ${words[some[0].verdict].word}`
  })
  const told =
    rest.length === 0 ? [] : wrap(`and ${rest.join(', ')}: ${shown.typed} verify report --json`, shown.width - 2)
  return [
    paint('dim', `  ${pad('table', column)}  ${pad('rows', digits, 'right')}`),
    ...lines,
    ...told.map((line) => paint('dim', indented(line))),
  ]
}

function found({ onlySource, onlyTarget, different, unsettled, transient }: TableReport): readonly string[] {
  return [
    ...(different > 0 ? [`${formatCount(different)} ${different === 1 ? 'differs' : 'differ'}`] : []),
    ...(onlySource > 0 ? [`${formatCount(onlySource)} only at the source`] : []),
    ...(onlyTarget > 0 ? [`${formatCount(onlyTarget)} only at the target`] : []),
    ...(unsettled > 0 ? [`${formatCount(unsettled)} unsettled`] : []),
    ...(transient > 0 ? [`${formatCount(transient)} ${transient === 1 ? 'was' : 'were'} under way`] : []),
  ]
}

function progress({ rangesDone, ranges }: TableReport): readonly string[] {
  return rangesDone === ranges ? [] : [`${formatCount(rangesDone)} of ${formatCount(ranges)} parts read`]
}

/** Why something is not known, and what to do about it. */
function reason(why: string, indent: number, { width, typed }: Shown, paint: Paint): readonly string[] {
  const space = ' '.repeat(indent)
  const next = remedyOf(why, typed)
  return [
    ...wrap(oneLine(why), width - indent).map((line) => `${space}${paint('yellow', line)}`),
    ...(next === undefined ? [] : wrap(`→ ${next}`, width - indent).map((line) => `${space}${paint('cyan', line)}`)),
  ]
}

const remedies: readonly (readonly [start: string, next: (typed: string) => string])[] = [
  ['NOT_RUNNING', (typed) => `start it (${typed} run), and verify again while it runs`],
  ['its copy is not complete', (typed) => `wait until it is (${typed} status), and verify again`],
  ['TABLE_MISSING', () => 'it was dropped or renamed: leave it out by tables.exclude, or bring it back'],
  ['SERVER_BUSY', () => 'somebody has locked it: verify again later'],
  ['LIMIT_EXCEEDED: reading', (typed) => `${typed} verify --max-read <seconds>, or at a quieter time`],
  [
    'a commit at the source',
    () => 'a transaction there takes long, or waits for a standby: find it in the list of sessions, and verify again',
  ],
  ['the target had not applied', (typed) => `it is behind: see the lag in ${typed} status, and verify again`],
  ['the target has not applied', (typed) => `it is behind: see the lag in ${typed} status, and verify again`],
  ['it changed too often', (typed) => `${typed} verify --settle <seconds>, or at a quieter time`],
  ['reading it took too long', (typed) => `${typed} verify --settle <seconds>, or at a quieter time`],
]

function remedyOf(why: string, typed: string): string | undefined {
  const known = remedies.find(([start]) => why.startsWith(start))
  if (known) return known[1](typed)
  const [code = ''] = why.split(':')
  return Object.hasOwn(codes, code) ? codes[code as ErrorCode].next : undefined
}

/** The first of each table, as there is room. */
function renderDifferences({ samples, tables }: Report, { width, typed }: Shown, paint: Paint): readonly string[] {
  const found = tables.reduce((all, table) => all + differencesOf(table), 0)
  if (samples.length === 0) return []
  const lines: string[] = []
  let room: number = most.differences
  for (const [table, some] of Map.groupBy(samples, ({ table }) => table)) {
    if (room === 0) break
    lines.push('', `  ${paint('bold', shorten(oneLine(table), width - 2))}`)
    for (const one of some.slice(0, Math.min(room, most.ofTable))) {
      lines.push(...renderDifference(one, width, paint))
      room--
    }
  }
  const left = found - (most.differences - room)
  const more =
    left > 0 ? `${formatCount(left)} more, and of each when and where it was seen` : 'when and where each was seen'
  return [
    ...lines,
    '',
    ...wrap(`${more}: ${typed} verify report --json`, width - 2).map((line) => `  ${paint('dim', line)}`),
  ]
}

function renderDifference(one: DifferenceLine, width: number, paint: Paint): readonly string[] {
  const key = keyText(one.key, width - 8)
  const head = `    ${paint('red', glyphs.bad)} ${paint('bold', `(${key})`)}`
  const room = width - 10 - widthOf(key)
  const told = what(one)
  const [first = '', ...more] = widthOf(told) <= room ? [told] : wrap(told, width - 8)
  return [
    ...(widthOf(first) <= room ? [`${head}  ${first}`] : [head, `        ${first}`]),
    ...more.map((line) => `        ${line}`),
    ...one.columns.flatMap(({ name, source, target }) =>
      source === undefined && target === undefined
        ? []
        : [
            `        ${oneLine(name)}`,
            `          source ${shorten(value(source), Math.max(20, width - 17))}`,
            `          target ${shorten(value(target), Math.max(20, width - 17))}`,
          ],
    ),
  ]
}

function what({ what, copies, columns }: DifferenceLine): string {
  switch (what) {
    case 'only source':
      return 'is only at the source'
    case 'only target':
      return 'is only at the target'
    case 'copies':
      return `is there ${counted(copies?.[0] ?? 0, 'time')} at the source, ${counted(copies?.[1] ?? 0, 'time')} at the target`
    case 'different':
      return `differs in ${columns.map(({ name }) => oneLine(name)).join(', ')}`
    default:
      return what satisfies never
  }
}

export const oneLine = (text: string): string => printable(text).replaceAll('\n', '\\n')

export function keyText(key: readonly (string | null)[], width: number): string {
  return shorten(key.map((text) => (text === null ? 'null' : oneLine(text))).join(', '), width)
}

function value(text: string | null | undefined): string {
  return text === undefined ? 'nothing' : text === null ? 'null' : printable(JSON.stringify(text))
}

const clock = (at: number): string => `${new Date(at).toISOString().slice(11, 19)}Z`

function span(from: number, to: number): string {
  const day = (at: number): string => new Date(at).toISOString().slice(0, 10)
  return `${day(from)} ${clock(from)} to ${day(from) === day(to) ? '' : `${day(to)} `}${clock(to)}`
}

/** What was done since a moment, as far as a report tells. */
export type Paced = { readonly at: number; readonly rows: number }

/** One line while it runs. `since`: when this process began, and what an earlier one had read. */
export function renderProgress(report: Report, since: Paced, now: number): string {
  const { tables, begin } = report
  const rows = rowsRead(report)
  const all = begin.tables.reduce(
    (all, { ranges }) => all + ranges.reduce((rows, { estimatedRows }) => rows + estimatedRows, 0),
    0,
  )
  const seconds = (now - since.at) / 1000
  const rate = (rows - since.rows) / Math.max(0.001, seconds)
  const left = seconds < 2 || rate <= 0 || all <= rows ? [] : [`${formatSeconds((all - rows) / rate)} left`]
  const share = all === 0 ? '' : ` of about ${formatCount(Math.max(all, rows))}`
  const differences = total(tables, differencesOf)
  const unsettled = total(tables, ({ unsettled }) => unsettled)
  return [
    `${formatCount(rows)}${share} rows`,
    `${formatShort(Math.round(rate))} rows/s`,
    ...left,
    differences === 0 ? 'no difference' : counted(differences, 'difference'),
    ...(unsettled === 0 ? [] : [`${formatCount(unsettled)} unsettled`]),
  ].join(', ')
}

export const rowsRead = ({ tables }: Report): number => total(tables, ({ source }) => source)

/** The document of `verify --json` and `verify report --json`. `all`: the differences. */
export function reportJson(report: Report, all: readonly DifferenceLine[]): unknown {
  const { begin, tables, shapes, end } = report
  return {
    v: 1,
    pipeline: begin.pipeline,
    verdict: verdictOf(report),
    why: end?.why ?? null,
    began: begin.at,
    ended: end?.at ?? null,
    others: begin.others ?? 0,
    throttledMs: end?.throttledMs ?? null,
    tables: tables.map(({ table, verdict, why, rangesDone, ranges, pieces, ...counts }) => ({
      table,
      verdict,
      why: why ?? null,
      coverage: ranges === 0 ? 0 : rangesDone / ranges,
      pieces,
      ...counts,
    })),
    differences: all.map(differenceJson),
    shapes:
      shapes === undefined
        ? null
        : { verdict: shapes.verdict, why: shapes.why ?? null, at: shapes.at, found: shapes.differences },
  }
}

export const differenceJson = (line: DifferenceLine): unknown => ({ ...line, kind: undefined })

/** `crossfade repair`. Ends with a line feed. */
export function renderRepair(report: RepairReport, { width, typed }: Shown, paint: Paint): string {
  const { pipeline, dryRun, verdict, tables, found, audit } = report
  const name = paint('bold', pipeline)
  const also = (found.open ?? 0) > 0 ? ' and the continuous one' : ''
  const of = `the verification of ${moment(found.at)}${also}`
  if (tables.length === 0) return nothingToRepair(report, { width, typed }, paint)
  const { glyph, style } = words[verdict]
  const left = total(tables, ({ copied, removed, different, unknown }) => copied + removed + different + unknown)
  const told = total(tables, ({ told }) => told)
  const state =
    left === 0 ? `${counted(told, 'row')} equal now` : `${formatCount(left)} of ${counted(told, 'row')} not equal`
  const lines = [`${name}  ${paint(style, `${glyph} ${state}`)}${dryRun ? ', nothing is written' : ''}`]
  const about = [
    `What ${of} found; each row is read again before it is written.`,
    ...(found.whole ? [] : ['It was interrupted: what it had not read may differ as well.']),
    ...(found.unknown ? ['It could not verify everything: what it could not may differ as well.'] : []),
  ]
  lines.push(...wrap(about.join(' '), width - 2).map((line) => `  ${paint('dim', line)}`), '')
  for (const table of tables) lines.push(...repairedTable(table, dryRun, width, paint))
  const next = dryRun && verdict === 'different' ? 'repair' : found.whole ? 'verify' : 'verify --fresh'
  lines.push('')
  if (!dryRun && tables.some(({ written }) => written > 0))
    lines.push(...wrap(`Every row written is told in ${audit}`, width - 2).map(indented))
  return `${[...lines, `  ${paint('dim', 'next')} ${paint('cyan', `${typed} ${next}`)}`].join('\n')}\n`
}

function nothingToRepair({ pipeline, found, verdict }: RepairReport, { width, typed }: Shown, paint: Paint): string {
  const { glyph, style } = words[verdict]
  const of = `the verification of ${moment(found.at)}`
  const what = !found.whole
    ? `${of} was interrupted, and has found no row that differs so far`
    : found.unknown
      ? `${of} named no row that differs, and could not verify everything`
      : `${of} found no row that differs`
  const next = verdict === 'equal' ? [] : [`  ${paint('dim', 'next')} ${paint('cyan', `${typed} verify`)}`]
  const lines = [`${paint('bold', pipeline)}  ${paint(style, `${glyph} nothing to repair`)}`]
  return `${[...lines, ...wrap(what, width - 2).map(indented), ...next].join('\n')}\n`
}

function repairedTable(table: RepairTable, dryRun: boolean, width: number, paint: Paint): readonly string[] {
  const { copied, removed, written, right, different, unknown, first } = table
  const parts = [
    ...(copied > 0
      ? [`${counted(copied, 'row')} would be written as the source has ${copied === 1 ? 'it' : 'them'}`]
      : []),
    ...(removed > 0 ? [`${formatCount(removed)} would be removed`] : []),
    ...(dryRun ? [] : [`${formatCount(written)} written`]),
    ...(right > 0 ? [`${formatCount(right)} equal now`] : []),
    ...(different > 0 ? [`${formatCount(different)} still ${different === 1 ? 'differs' : 'differ'}`] : []),
    ...(unknown > 0 ? [`${formatCount(unknown)} unsettled`] : []),
  ]
  const left = copied + removed - first.length
  return [
    ...wrap(`${shorten(oneLine(table.table), width - 4)}  ${parts.join(', ')}`, width - 2).map(indented),
    ...first.map(
      ({ key, action }) =>
        `      ${paint('dim', action === 'remove' ? 'remove' : 'write ')} (${keyText(key, width - 16)})`,
    ),
    ...(left > 0 ? [`      ${paint('dim', `and ${formatCount(left)} more`)}`] : []),
  ]
}

const moment = (at: number): string => new Date(at).toISOString().slice(0, 19).replace('T', ' ') + 'Z'
