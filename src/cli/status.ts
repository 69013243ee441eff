import type { Status } from '../status.ts'
import { formatBytes, formatSeconds, formatShort, pad, printable } from './format.ts'
import { copiedText, renderTables, renderVerdict } from './progress.ts'
import { renderFailure, type Paint } from './report.ts'
import { renderVerification } from './verification.ts'

/** `crossfade status`. Ends with a line feed. */
export function renderStatus(status: Status, width: number, paint: Paint, now: number = Date.now()): string {
  const { source, target, lag, rates, error } = status
  const field = (name: string, text: string): string => `  ${paint('dim', pad(name, 8))} ${text}`
  const kept = [
    source.retainedBytes === null ? undefined : `keeps ${formatBytes(source.retainedBytes)} for us`,
    source.safeWalBytes === null ? undefined : `${formatBytes(source.safeWalBytes)} until it would give that up`,
  ].filter((part) => part !== undefined)
  const at = (position: string | null): string => (position === null ? 'unknown' : printable(position))
  const complete = status.phase === 'complete'
  const title = `${paint('bold', status.pipeline)}  ${status.phase}  ${renderVerdict(status, paint)}`
  const sourceLine =
    complete && source.slot === null && error === null
      ? 'keeps nothing for us any more'
      : `${source.slot ?? 'slot unknown'}  at ${at(source.position)}`
  const lines = complete
    ? [
        title,
        field('copied', copiedText(status.tables)),
        field('source', sourceLine),
        field('target', `at ${at(target.position)}`),
      ]
    : [
        title,
        field('lag', lag.proved && lag.seconds !== null ? `${lag.seconds.toFixed(1)} s` : 'unknown: nothing proves it'),
        ...(lag.records === null
          ? []
          : [
              field(
                'waiting',
                `${formatShort(lag.records)} records${lag.bytes === null ? '' : `, ${formatBytes(lag.bytes)}`}`,
              ),
            ]),
        field('source', sourceLine),
        ...(kept.length > 0 ? [field('', kept.join(', '))] : []),
        field('target', `at ${at(target.position)}${since(target.watermarkAt, now)}`),
        field(
          'rates',
          rates === null
            ? 'unknown: only a run watches them'
            : `read ${formatShort(Math.round(rates.read))}/s, applied ${formatShort(Math.round(rates.applied))}/s`,
        ),
      ]
  if (status.verification !== undefined) lines.push(...renderVerification(status.verification, width, paint, now))
  if (error) {
    const told = `${new Date(error.at).toISOString().slice(0, 19)}Z, ${formatSeconds(Math.max(0, (now - error.at) / 1000))} ago`
    lines.push('', renderFailure(error, width, paint).trimEnd())
    lines.push(`    ${paint('dim', pad('at', 8))} ${told}${error.retrying ? '; trying again' : ''}`)
  }
  if (status.tables.length > 0)
    lines.push('', ...renderTables(status.tables, { width, room: Number.MAX_SAFE_INTEGER }, paint))
  return `${lines.join('\n')}\n`
}

const since = (at: number | null, now: number): string =>
  at === null ? '' : `, committed ${formatSeconds(Math.max(0, (now - at) / 1000))} ago`
