import { readFileSync, writeFileSync } from 'node:fs'
import type { BigTransaction } from './memory.ts'
import type { Copies } from './copy.ts'
import type { Drain, Drains } from './drain.ts'
import type { Latency } from './latency.ts'
import type { Stages } from './stages.ts'
import type { Spread, Verifications } from './verify.ts'

export type Results = {
  readonly v: 1
  readonly at: string
  readonly machine: string
  readonly postgres: string
  readonly kafka: string
  readonly commit: string
  readonly size: 'full' | 'quick'
  /** Processes that wanted a core, over the last minute, before and after. */
  readonly load: readonly [number, number]
  /** Parts that were measured in runs of their own since. */
  readonly later?: Readonly<Record<string, Pick<Results, 'at' | 'commit' | 'load'>>>
  readonly stages?: Stages
  readonly copy?: Copies
  readonly verify?: Verifications
  readonly drain?: Drains
  readonly latency?: Latency
  readonly transaction?: BigTransaction
}

type Line = readonly [what: string, value: string, goal: string]

const begin = '<!-- results: begin -->'
const end = '<!-- results: end -->'
const one = (value: number): string => value.toFixed(1)
const two = (value: number): string => value.toFixed(2)
const thousands = (value: number): string => Math.round(value).toLocaleString('en')
const percent = (share: number): string => `${Math.round(share * 100)} %`
const mega = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MB`
const reached = (met: boolean): string => (met ? 'met' : 'missed')

/** The table as Markdown; parts that were not run are left out. */
export function table(results: Results): string {
  const lines = [
    ...ratioLines(results),
    ...(results.verify === undefined ? [] : verifyLines(results.verify)),
    ...(results.stages === undefined ? [] : stageLines(results.stages)),
    ...memoryLines(results),
  ]
  const head = `${results.at.slice(0, 10)}, ${results.size} size, commit ${results.commit}. ${results.machine}; PostgreSQL ${results.postgres}, Kafka ${results.kafka}; load ${loadText(results)}.`
  const later = Object.entries(results.later ?? {}).map(
    ([part, run]) => ` Measured again: ${part}, ${run.at.slice(0, 10)}, commit ${run.commit}, load ${loadText(run)}.`,
  )
  const rows = lines.map((line) => `| ${line.join(' | ')} |`)
  return `${head}${later.join('')}\n\n| What | Measured | Goal |\n| --- | --- | --- |\n${rows.join('\n')}\n`
}

const loadText = ({ load }: Pick<Results, 'load'>): string => `${load.map(one).join(' before, ')} after`

function ratioLines({ copy, drain, latency }: Results): readonly Line[] {
  const lines: Line[] = []
  if (copy !== undefined) {
    const rate = (seconds: number): string => `${thousands(copy.rows / seconds)} rows/s`
    const pipe = copy.pipe === 'psql' ? '`psql COPY \\| psql COPY`' : 'our own pipe, one chunk at a time (no psql here)'
    lines.push(
      [
        `Copy of ${thousands(copy.rows)} rows against ${pipe}`,
        `**${two(copy.ratio)}** of its binary, ${two(copy.ratioToText)} of its text form`,
        `≥ 0.7: ${reached(copy.ratio >= 0.7)}`,
      ],
      ['— crossfade, copying', rate(copy.ours), ''],
      ['— crossfade, whole run of `mode: full`', `${one(copy.oursWhole)} s`, ''],
      ['— the pipe, binary', rate(copy.binary), ''],
      ['— the pipe, text', rate(copy.text), ''],
    )
  }
  if (drain !== undefined) {
    const { inserts, updates, deletes } = drain.backlog
    lines.push(
      [
        `Drain of ${thousands(inserts)} inserts, ${thousands(updates)} updates, ${thousands(deletes)} deletes against logical replication`,
        `**${two(drain.ratio)}**`,
        `≥ 0.3: ${reached(drain.ratio >= 0.3)}`,
      ],
      ['— crossfade', drainText(drain.ours), ''],
      ['— logical replication', drainText(drain.native), ''],
    )
  }
  if (latency !== undefined) {
    const { p50, p95, p99, perSecond } = latency
    lines.push([
      `Latency at ${perSecond} transactions/s`,
      `p50 ${one(p50)}, **p95 ${one(p95)}**, p99 ${one(p99)} ms`,
      `p95 < 100 ms: ${reached(p95 < 100)}`,
    ])
  }
  return lines
}

function drainText({ seconds, firstSeconds, changesPerSecond, cpu }: Drain): string {
  const parts = [
    `${one(seconds)} s (${one(firstSeconds)} s to the first change), ${thousands(changesPerSecond)} changes/s`,
    `CPU µs a change: worker ${one(cpu.worker)}, source ${one(cpu.source)}, target ${one(cpu.target)}, Kafka ${one(cpu.log)}`,
  ]
  return parts.join('; ')
}

const spread = ({ median, least, most }: Spread): string => `${two(median)} (${two(least)}-${two(most)})`

function verifyLines({
  rows,
  rounds,
  ratio,
  ratioWhole,
  seconds,
  cpu,
  digest,
  rate,
  load,
}: Verifications): readonly Line[] {
  const micro = (value: number): string => `${two(value)} µs`
  return [
    [
      `Verification of ${thousands(rows)} rows against their copy, ${rounds} rounds`,
      `**${spread(ratio)}** of its time, ${spread(ratioWhole)} as whole commands`,
      `≤ 0.6: ${reached(ratio.median <= 0.6)}; ≤ 1: ${reached(ratio.median <= 1)}`,
    ],
    [
      '— crossfade, verifying',
      `${thousands(rows / seconds)} rows/s; CPU µs a row: source ${two(cpu.source)}, target ${two(cpu.target)}`,
      '',
    ],
    [
      'Digest of a row, CPU of the server',
      `${micro(digest.ours)}: **${spread(digest.ofText)}** of \`md5(t::text)\` (${micro(digest.text)}), ${spread(digest.ofCount)} of \`count(*)\` (${micro(digest.count)})`,
      '',
    ],
    [
      `\`verify --rate ${thousands(rate.asked)}\`: rows read at the source`,
      `${thousands(rate.seen)} rows/s; at work in ${percent(rate.busy)} of ${rate.samples} looks, ${two(rate.sessions)} sessions on average`,
      `≤ ${thousands(rate.asked * 1.1)}: ${reached(rate.seen <= rate.asked * 1.1)}`,
    ],
    [
      `\`verify --max-load ${load.asked}\` beside ${load.others} busy sessions`,
      `at work for ${two(load.stoppedAfter)} s more, then not in ${percent(load.idle)} of ${load.samples} looks; again ${two(load.resumedAfter)} s after they ended`,
      `100 %: ${reached(load.idle === 1)}`,
    ],
  ]
}

function stageLines(stages: Stages): readonly Line[] {
  const micro = (value: number): string => `${two(value)} µs`
  const applier = stages.decodeAndFold + stages.bind
  return [
    ['Publisher beside transport: encode', `**${micro(stages.encode)}**`, `≤ 3 µs: ${reached(stages.encode <= 3)}`],
    ['Applier beside transport: decode, fold, bind', `**${micro(applier)}**`, `≤ 3 µs: ${reached(applier <= 3)}`],
    ['— read: socket to row images', micro(stages.read), ''],
    ['— images: messages to row images, without the socket', micro(stages.images), ''],
    ['— encode: key, hash, envelope, record batch', micro(stages.encode), ''],
    ['— encode, compressed', micro(stages.encodeCompressed), ''],
    ['— produce: checksum, socket, answer', micro(stages.produce), ''],
    ['— fetch: socket, checksum, decompression, index', micro(stages.fetch), ''],
    ['— decode and fold', micro(stages.decodeAndFold), ''],
    ['— bind: rows to parameters of statements', micro(stages.bind), ''],
    ['— apply: bind, socket, answer', micro(stages.apply), ''],
  ]
}

function memoryLines({ copy, drain, transaction }: Results): readonly Line[] {
  const lines: Line[] = []
  const line = (what: string, bytes: number): void => {
    lines.push([`Worker memory (peak RSS): ${what}`, mega(bytes), `< 300 MB: ${reached(bytes < 300 * 2 ** 20)}`])
  }
  if (copy !== undefined) line(`copy of ${thousands(copy.rows)} rows`, copy.workerPeakBytes)
  if (drain !== undefined) line('drain', drain.workerPeakBytes)
  if (transaction !== undefined)
    line(`one transaction of ${thousands(transaction.rows)} rows`, transaction.workerPeakBytes)
  return lines
}

/** Puts the table between the page's markers; the rest of it stays. */
export function writeTable(page: URL, results: Results): void {
  const text = readFileSync(page, 'utf8')
  const from = text.indexOf(begin)
  const to = text.indexOf(end)
  if (from < 0 || to < from) throw new Error(`${page.pathname} has no markers for the table`)
  writeFileSync(page, `${text.slice(0, from + begin.length)}\n\n${table(results)}\n${text.slice(to)}`)
}
