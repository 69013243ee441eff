import type { Status } from '../status.ts'
import { formatBytes, formatSeconds, formatShort, pad, printable } from './format.ts'
import { renderTables, renderVerdict } from './progress.ts'
import type { Paint } from './report.ts'

/** `crossfade status`. Ends with a line feed. */
export function renderStatus(status: Status, width: number, paint: Paint, now: number = Date.now()): string {
  const { source, target, lag, rates, error } = status
  const field = (name: string, text: string): string => `  ${paint('dim', pad(name, 8))} ${text}`
  const kept = [
    source.retainedBytes === null ? undefined : `keeps ${formatBytes(source.retainedBytes)} for us`,
    source.safeWalBytes === null ? undefined : `${formatBytes(source.safeWalBytes)} until it would give that up`,
  ].filter((part) => part !== undefined)
  const lines = [
    `${paint('bold', status.pipeline)}  ${status.phase}  ${renderVerdict(status, paint)}`,
    field('lag', lag.proved && lag.seconds !== null ? `${lag.seconds.toFixed(1)} s` : 'unknown: nothing proves it'),
    ...(lag.records === null
      ? []
      : [
          field(
            'waiting',
            `${formatShort(lag.records)} records${lag.bytes === null ? '' : `, ${formatBytes(lag.bytes)}`}`,
          ),
        ]),
    field(
      'source',
      `${source.slot ?? 'slot unknown'}  at ${source.position === null ? 'unknown' : printable(source.position)}`,
    ),
    ...(kept.length > 0 ? [field('', kept.join(', '))] : []),
    field(
      'target',
      `at ${target.position === null ? 'unknown' : printable(target.position)}${since(target.watermarkAt, now)}`,
    ),
    field(
      'rates',
      rates === null
        ? 'unknown: only a run watches them'
        : `read ${formatShort(Math.round(rates.read))}/s, applied ${formatShort(Math.round(rates.applied))}/s`,
    ),
  ]
  if (error) {
    const text = [error.facts.object, error.facts.observed].filter((part) => part !== undefined).join(': ')
    lines.push(
      field('error', `${paint('red', error.code)}  ${printable(text)}${error.retrying ? '; trying again' : ''}`),
    )
    if (error.facts.next !== undefined) lines.push(field('next', paint('cyan', printable(error.facts.next))))
  }
  if (status.tables.length > 0)
    lines.push('', ...renderTables(status.tables, { width, room: Number.MAX_SAFE_INTEGER }, paint))
  return `${lines.join('\n')}\n`
}

const since = (at: number | null, now: number): string =>
  at === null ? '' : `, committed ${formatSeconds(Math.max(0, (now - at) / 1000))} ago`
