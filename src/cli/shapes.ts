import type { ShapesLine } from '../verify/journal.ts'
import type { Severity, ShapeDifference } from '../verify/shapes.ts'
import { printable, wrap } from './format.ts'
import { glyphs, verdictText, type Paint, type Style } from './report.ts'

const marks: Readonly<Record<Severity, { readonly glyph: string; readonly style: Style }>> = {
  blocker: { glyph: glyphs.bad, style: 'red' },
  unknown: { glyph: glyphs.unknown, style: 'magenta' },
  warning: { glyph: glyphs.warning, style: 'yellow' },
  note: { glyph: '·', style: 'dim' },
}
const severities = ['blocker', 'unknown', 'warning', 'note'] as const
/** Of one severity; notes are for programs where they are many. */
const most = 40
const mostNotes = 5

/** What the tables are made of, in the report of a verification. */
export function renderShapes(
  shapes: ShapesLine | undefined,
  { width, typed }: { readonly width: number; readonly typed: string },
  paint: Paint,
): readonly string[] {
  if (shapes === undefined) return ['  definitions were not compared']
  const { differences, verdict, why } = shapes
  const counts = severities.flatMap((severity) => {
    const count = differences.filter((one) => one.severity === severity).length
    return count === 0 ? [] : `${count} ${severity === 'unknown' || count === 1 ? severity : `${severity}s`}`
  })
  const lines = [`  definitions  ${verdictText(verdict, paint)}${counts.length > 0 ? `  ${counts.join(', ')}` : ''}`]
  if (why !== undefined) lines.push(...wrap(printable(why), width - 6).map((line) => `      ${paint('yellow', line)}`))
  for (const severity of severities) {
    const some = differences.filter((one) => one.severity === severity)
    const shown = some.slice(0, severity === 'note' ? mostNotes : most)
    lines.push(...shown.flatMap((one) => renderDifference(one, width, paint)))
    if (shown.length < some.length)
      lines.push(
        `      ${paint('dim', `and ${some.length - shown.length} more`)}: ${typed} verify --only schema --json`,
      )
  }
  return lines
}

function renderDifference(one: ShapeDifference, width: number, paint: Paint): readonly string[] {
  const { glyph, style } = marks[one.severity]
  const { kind, table, name, what, part, source, target, why } = one
  const object = kind === 'table' ? `table ${table}` : `${kind} ${name}${table === '' ? '' : ` of ${table}`}`
  const told =
    what === 'missing'
      ? 'is not at the target'
      : what === 'added'
        ? 'is only at the target'
        : part === undefined
          ? 'is another one'
          : `differs: ${part}`
  const ends = [
    ...(what === 'added' ? [] : [`source  ${shown(source)}`]),
    ...(what === 'missing' ? [] : [`target  ${shown(target)}`]),
  ]
  return [
    `  ${paint(style, glyph)} ${printable(object)} ${told}`,
    ...(one.severity === 'note' ? [] : ends).map((line) => `      ${paint('dim', printable(line))}`),
    ...(why === undefined ? [] : wrap(printable(why), width - 6).map((line) => `      ${line}`)),
  ]
}

function shown(text: string | undefined): string {
  return text === undefined || text === '' ? 'none' : text
}
