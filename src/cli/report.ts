import { styleText } from 'node:util'
import type { Finding } from '../connector.ts'
import { codes, type ErrorCode, type Facts, type Failure } from '../errors.ts'
import type { Verdict } from '../verify/journal.ts'
import { pad, printable, widthOf, wrap } from './format.ts'

export type Style = Parameters<typeof styleText>[0]
/** Colours a text, or leaves it as it is where colours are not wanted. */
export type Paint = (style: Style, text: string) => string
export const plain: Paint = (_, text) => text

/** Colours as the stream and NO_COLOR allow. */
export function paintFor(stream: NodeJS.WritableStream): Paint {
  return (style, text) => styleText(style, text, { stream })
}

export const glyphs = { good: '●', idle: '◌', busy: '◐', warning: '▲', bad: '✗', unknown: '?', rest: '‖' } as const

export const words: Readonly<
  Record<Verdict, { readonly glyph: string; readonly style: Style; readonly word: string }>
> = {
  equal: { glyph: glyphs.good, style: 'green', word: 'equal' },
  different: { glyph: glyphs.bad, style: 'red', word: 'different' },
  unknown: { glyph: glyphs.unknown, style: 'yellow', word: 'not verified' },
}

export function verdictText(verdict: Verdict, paint: Paint): string {
  const { glyph, style, word } = words[verdict]
  return paint(style, `${glyph} ${word}`)
}

/** An error in its one layout: code, object, observed and needed, effect, next step. Ends with a line feed. */
export function renderFailure({ code, facts }: Pick<Failure, 'code' | 'facts'>, width: number, paint: Paint): string {
  const { meaning } = codes[code]
  const lines = [`${paint('red', glyphs.bad)} ${paint(['bold', 'red'], code)}  ${meaning}`]
  lines.push(...factLines(code, facts, width, paint))
  for (const each of facts.all ?? []) {
    lines.push(
      '',
      ...heading(each, width, paint),
      ...factLines(undefined, { ...each, object: undefined }, width, paint),
    )
  }
  if (code === 'BUG' && facts.cause instanceof Error && facts.cause.stack !== undefined)
    lines.push(
      ...field(
        'trace',
        facts.cause.stack
          .split('\n')
          .slice(1, 6)
          .map((line) => line.trim())
          .join('\n'),
        0,
        paint,
      ),
    )
  return `${lines.join('\n')}\n`
}

type Loose = { readonly [key in keyof Facts]?: Facts[key] | undefined }

const heading = ({ object }: Facts, width: number, paint: Paint): readonly string[] =>
  object === undefined ? [] : wrap(printable(object), width - 2).map((line) => `  ${paint('bold', line)}`)

function factLines(code: ErrorCode | undefined, facts: Loose, width: number, paint: Paint): readonly string[] {
  // A list has its own next steps; the code's says nothing beside them.
  const next = facts.next ?? (code === undefined || facts.all?.length ? undefined : codes[code].next)
  return [
    ...field('object', facts.object, width, paint),
    ...field('observed', facts.observed, width, paint),
    ...field('needed', facts.needed, width, paint),
    ...field('effect', facts.effect, width, paint),
    // Never broken: it is there to be copied.
    ...field('next', next, 0, paint, 'cyan'),
  ]
}

/** `width` 0: lines are left whole. */
function field(name: string, text: string | undefined, width: number, paint: Paint, style?: Style): readonly string[] {
  if (text === undefined || text === '') return []
  const clean = printable(text)
  const lines = width === 0 ? clean.split('\n') : wrap(clean, Math.max(20, width - 13))
  return lines.map((line, i) => {
    const label = paint('dim', pad(i === 0 ? name : '', 8))
    return `    ${label} ${style === undefined ? line : paint(style, line)}`
  })
}

/** The same for `--json`. */
export function failureJson({ code, facts }: Failure): Record<string, unknown> {
  const { meaning, policy, next } = codes[code]
  const one = ({ object, observed, needed, effect, next }: Facts): Record<string, unknown> => ({
    object,
    observed,
    needed,
    effect,
    next,
  })
  return { code, meaning, policy, ...one({ next, ...facts }), ...(facts.all && { all: facts.all.map(one) }) }
}

const levels = {
  blocker: { glyph: glyphs.bad, style: 'red' },
  unknown: { glyph: glyphs.unknown, style: 'magenta' },
  warning: { glyph: glyphs.warning, style: 'yellow' },
  ok: { glyph: '✓', style: 'green' },
} as const
const order = ['blocker', 'unknown', 'warning', 'ok'] as const

type FindingCounts = Readonly<Record<Finding['level'], number>>

export function countFindings(findings: readonly Finding[]): FindingCounts {
  const counts = { ok: 0, warning: 0, blocker: 0, unknown: 0 }
  for (const { level } of findings) counts[level]++
  return counts
}

/** What a preflight found, the worst first, each with what is needed and a remedy that can be copied; then the sum. Ends with a line feed. */
export function renderFindings(findings: readonly Finding[], width: number, paint: Paint): string {
  const idWidth = Math.min(32, Math.max(0, ...findings.map(({ id }) => widthOf(id))))
  const lines = order.flatMap((level) =>
    findings
      .filter((finding) => finding.level === level)
      .flatMap(({ id, observed, needed, remedy }) => {
        const { glyph, style } = levels[level]
        const indent = ' '.repeat(idWidth + 4)
        const [first = '', ...rest] = wrap(printable(observed), Math.max(20, width - idWidth - 4))
        const found = [`${paint(style, glyph)} ${paint('bold', pad(printable(id), idWidth))}  ${first}`]
        found.push(...rest.map((line) => indent + line))
        if (level === 'ok') return found
        const needs = wrap(`needed: ${printable(needed)}`, Math.max(20, width - idWidth - 4))
        found.push(...needs.map((line) => indent + paint('dim', line)))
        if (remedy !== undefined)
          found.push(
            ...printable(remedy)
              .split('\n')
              .map((line, i) => `    ${i === 0 ? '→' : ' '} ${paint('cyan', line)}`),
          )
        return found
      }),
  )
  return `${[...lines, '', sentence(countFindings(findings), paint)].join('\n')}\n`
}

function sentence({ ok, warning, blocker, unknown }: FindingCounts, paint: Paint): string {
  const counts = `${ok} ok, ${warning} ${warning === 1 ? 'warning' : 'warnings'}, ${blocker} ${blocker === 1 ? 'blocker' : 'blockers'}, ${unknown} unknown.`
  if (blocker > 0) return `${counts} ${paint('red', 'Not ready: remove the blockers first.')}`
  if (unknown > 0) return `${counts} ${paint('magenta', 'Not proved ready: something could not be checked.')}`
  return `${counts} ${paint('green', 'Ready to run.')}`
}
