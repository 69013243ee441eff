import type { OpenRow } from '../verify/open-rows.ts'
import type { Verification, Watched } from '../verify/watched.ts'
import { formatCount, formatSeconds, pad, printable, shorten, wrap } from './format.ts'
import type { Paint } from './report.ts'
import { verdictText } from './report.ts'

/** Rows that differ, of those that are told by a status; all are in its JSON. */
const shown = 5
/** What is written every few seconds and is older than this is no longer written, in ms. */
const silent = 60_000

/** The lines of a status about verification. */
export function renderVerification(
  { standing, last, continuous }: Verification,
  width: number,
  paint: Paint,
  now: number,
): readonly string[] {
  const field = (name: string, text: string): string => `  ${paint('dim', pad(name, 8))} ${text}`
  const ago = (at: number): string => `${formatSeconds(Math.max(0, (now - at) / 1000))} ago`
  const oldest = standing.oldest === undefined ? '' : `  read ${ago(standing.oldest)} or since`
  const lines = [field('verified', `${verdictText(standing.verdict, paint)}${oldest}`)]
  const say = (text: string): void => void lines.push(...wrap(text, width - 11).map((line) => field('', line)))
  if (standing.why !== undefined) say(printable(standing.why))
  if (last !== undefined) {
    const { ended, rows, tables, differences, unsettled, verdict, shapes } = last
    const found = [
      ...(shapes === 'different' ? ['their definitions differ'] : []),
      ...(differences > 0 ? [`${formatCount(differences)} differed`] : []),
      ...(unsettled > 0 ? [`${formatCount(unsettled)} unsettled`] : []),
    ]
    const told = found.length > 0 ? found.join(', ') : verdict === 'equal' ? 'all equal' : 'not all could be verified'
    say(`last read to the end ${ago(ended)}: ${formatCount(rows)} rows of ${tables} tables, ${told}`)
  }
  if (continuous !== undefined) for (const text of progress(continuous, now)) say(text)
  const differ = continuous?.open.rows.filter(({ verdict }) => verdict === 'different') ?? []
  for (const row of differ.slice(0, shown)) lines.push(field('', paint('red', rowText(row, width, now))))
  if (differ.length > shown) say(`and ${formatCount(differ.length - shown)} more: status --json`)
  return lines
}

function progress({ at, walk, changes, trouble }: Watched, now: number): readonly string[] {
  const { why, looked, passedOver } = changes
  const stands = now - at > silent ? [`it was not verified on for ${formatSeconds((now - at) / 1000)}`] : []
  const reads =
    walk === undefined
      ? []
      : [`reading again: ${formatCount(walk.rows)} of about ${formatCount(walk.estimatedRows)} rows`]
  const followed =
    why === undefined
      ? `${formatCount(looked)} rows were looked at after they changed${passedOver > 0 ? `, ${formatCount(passedOver)} changes were left to the next reading` : ''}`
      : `changed rows are looked at by the reading alone: ${why}`
  const failing = trouble === undefined ? [] : [printable(`does not go on: ${trouble.code}: ${trouble.observed}`)]
  return [...stands, ...reads, followed, ...failing]
}

function rowText({ table, key, what, columns, firstSeen, rechecks }: OpenRow, width: number, now: number): string {
  const name = `${printable(table)} (${key.map((part) => (part === null ? 'null' : printable(part))).join(', ')})`
  const how =
    what === 'different'
      ? `differs in ${columns.map(printable).join(', ')}`
      : what === 'copies'
        ? 'differs in number'
        : `is ${what ?? 'different'}`
  const since = formatSeconds(Math.max(0, (now - firstSeen) / 1000))
  return shorten(`${name} ${how}, for ${since}, seen ${rechecks + 1} times`, Math.max(40, width - 11))
}
