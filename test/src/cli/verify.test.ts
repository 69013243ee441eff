import assert from 'node:assert/strict'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, describe, it } from 'node:test'
import { runCli, type Host } from '../../../src/cli/commands.ts'
import { plain } from '../../../src/cli/report.ts'
import { renderProgress, renderRepair, renderReport } from '../../../src/cli/verify.ts'
import { Failure } from '../../../src/errors.ts'
import type { Position } from '../../../src/model.ts'
import type { Begin, ChunkLine, DifferenceLine, Line, Planned } from '../../../src/verify/journal.ts'
import { emptyReport, summarise, type Report } from '../../../src/verify/report.ts'
import type { RepairReport, RepairTable } from '../../../src/verify/repair.ts'
import type { VerifyOptions } from '../../../src/verify/verify.ts'
import { fakeHost, nothingRepaired } from './host.ts'

const at = Date.UTC(2026, 0, 2, 3, 4, 5)
const planned = (table: string, ranges = 1): Planned => ({
  table,
  columns: ['id', 'name'],
  key: ['id'],
  ranges: Array.from({ length: ranges }, () => ({ table: { schema: 'public', name: table }, estimatedRows: 100 })),
})
const chunk = (table: string, changes: Partial<ChunkLine> = {}): ChunkLine => ({
  kind: 'chunk',
  table,
  first: 0,
  last: 0,
  at: at + 2000,
  verdict: 'equal',
  source: 100,
  target: 100,
  onlySource: 0,
  onlyTarget: 0,
  different: 0,
  unsettled: 0,
  transient: 0,
  rechecks: 0,
  ...changes,
})
const difference = (table: string, changes: Partial<DifferenceLine> = {}): DifferenceLine => ({
  kind: 'difference',
  table,
  what: 'different',
  key: ['12'],
  columns: [{ name: 'name' }],
  position: '00000000016b3748' as Position,
  firstSeen: at + 1000,
  rechecks: 1,
  ...changes,
})
const end = (verdict: 'equal' | 'different' | 'unknown', why?: string): Line => ({
  kind: 'end',
  at: at + 2500,
  verdict,
  throttledMs: 0,
  ...(why !== undefined && { why }),
})
function reportOf(tables: readonly Planned[], lines: readonly Line[]): Report {
  const begin: Begin = { kind: 'begin', v: 1, pipeline: 'shop', at, withValues: false, tables }
  const report = emptyReport(begin)
  for (const line of lines) summarise(report, line)
  return report
}
const shown = { width: 80, typed: 'crossfade' }

const verify = resolve(import.meta.dirname, '../../../src/verify')
const sources = readdirSync(verify)
  .map((file) => readFileSync(join(verify, file), 'utf8'))
  .join('')

describe('a report', () => {
  it('names what differs first, then what is not verified and what to do about it, then what is equal', () => {
    const tables = ['public.fine', 'public.orders', 'public.later'].map((table) => planned(table))
    const of = { kind: 'index', table: 'public.fine', name: 'fine_at', what: 'missing' } as const
    const report = reportOf(tables, [
      {
        kind: 'shapes',
        at,
        verdict: 'different',
        differences: [
          {
            ...of,
            severity: 'blocker',
            kind: 'column',
            name: 'at',
            what: 'different',
            part: 'type',
            source: 'int',
            target: '',
          },
          { ...of, severity: 'warning', source: 'btree (at)', why: 'it was\nlost' },
          { ...of, severity: 'note', kind: 'table', name: '', what: 'added', target: 'a table' },
        ],
      },
      chunk('public.fine', { transient: 2 }),
      difference('public.orders'),
      difference('public.orders', { what: 'only source', key: ['a\nb', null], columns: [] }),
      chunk('public.orders', { verdict: 'different', different: 1, onlySource: 1, source: 1_234_567 }),
      chunk('public.later', { verdict: 'unknown', source: 0, why: 'NOT_RUNNING: no process runs the pipeline' }),
      end('different'),
    ])
    assert.equal(
      renderReport(report, shown, plain),
      `shop  ✗ different
  1,234,667 rows of 3 tables, 2026-01-02 03:04:05Z to 03:04:07Z (2.5 s)

  table               rows
  public.orders  1,234,567  ✗ 1 differs, 1 only at the source
  public.later           0  ? not verified
      NOT_RUNNING: no process runs the pipeline
      → start it (crossfade run), and verify again while it runs
  public.fine          100  ● equal, 2 were under way

  public.orders
    ✗ (12)  differs in name
    ✗ (a\\nb, null)  is only at the source

  when and where each was seen: crossfade verify report --json

  definitions  ✗ different  1 blocker, 1 warning, 1 note
  ✗ column at of public.fine differs: type
      source  int
      target  none
  ▲ index fine_at of public.fine is not at the target
      source  btree (at)
      it was
      lost
  · table public.fine is only at the target

  next crossfade repair --dry-run
`,
    )
  })

  it('of some tables says how many it is not about', () => {
    const part = reportOf([planned('public.fine')], [chunk('public.fine'), end('equal')])
    const text = renderReport({ ...part, begin: { ...part.begin, others: 3 } }, shown, plain)
    assert.match(text, /\n {2}3 other tables of the pipeline were not asked for\n/)
  })

  it('is never equal without its end', () => {
    const text = renderReport(reportOf([planned('public.fine')], [chunk('public.fine')]), shown, plain)
    assert.match(text, /^shop {2}\? not verified\n[^]*It did not come to its end: crossfade verify goes on with it\n/)
  })

  it('of hundreds of tables and differences stays readable, and counts what it leaves out', () => {
    const names = Array.from({ length: 400 }, (_, i) => `public.${'long_'.repeat(12)}${i}`)
    const lines = names.flatMap((table, i): readonly Line[] =>
      i < 100
        ? [
            ...Array.from({ length: 10 }, (_, n) => difference(table, { key: [`${'k'.repeat(90)}${n}`] })),
            chunk(table, { verdict: 'different', different: 10 }),
          ]
        : [chunk(table, i < 150 ? { verdict: 'unknown', why: `LIMIT_EXCEEDED: ${'word '.repeat(40)}` } : {})],
    )
    const report = reportOf(
      names.map((table) => planned(table)),
      [...lines, end('different')],
    )
    for (const width of [60, 80, 120]) {
      const text = renderReport(report, { ...shown, width }, plain)
      for (const line of text.split('\n')) assert.ok(line.length <= width, line)
      assert.match(text.replaceAll('\n  ', ' '), /and 60 more different, 10 more not verified, 230 more equal:/)
      assert.match(text, /970 more, and of each when and where it was seen/)
      assert.ok(text.split('\n').length < 450, `${text.split('\n').length} lines`)
    }
  })

  it('shows values on lines of their own, no wider than the terminal, which they cannot steer', () => {
    const columns = [{ name: 'name', source: `\u001b[2J${'x'.repeat(500)}`, target: null }]
    const report = reportOf([planned('public.a')], [difference('public.a', { columns }), chunk('public.a')])
    const text = renderReport(report, shown, plain)
    assert.match(text, / {4}✗ \(12\) {2}differs in name\n {8}name\n {10}source "\\u001b\[2Jx+…x+"\n {10}target null\n/)
    for (const line of text.split('\n')) assert.ok(line.length <= 80, line)
  })

  for (const [why, next] of [
    ['its copy is not complete yet', /crossfade status/],
    ['reading it took too long', /--settle/],
    ['the target has not applied all that the source had committed', /behind/],
    ['it changed too often to be read at both ends between two changes', /--settle/],
    ['a commit at the source that is in its log was not visible', /transaction/],
    ['the target had not applied what was seen at the source', /behind/],
    ['NOT_RUNNING: no process runs the pipeline', /start it/],
    ['LIMIT_EXCEEDED: reading it took longer than ', /--max-read/],
    ['TARGET_SHAPE: ', /Alter or drop it/],
  ] as const)
    it(`says what to do about: ${why}`, () => {
      const told = why.replace(/^[A-Z_]+: /, '')
      assert.ok(sources.includes(told), 'it is said in these words')
      const report = reportOf([{ ...planned('public.a', 0), why }], [end('unknown', 'some tables')])
      assert.match(renderReport(report, { ...shown, width: 200 }, plain), new RegExp(`\\n +→ [^\\n]*${next.source}`))
    })
})

describe('the progress of a verification', () => {
  const tables = [planned('public.a', 40)]
  it('tells rows, rate, time left and differences; the rate of this process alone', () => {
    const report = reportOf(tables, [chunk('public.a', { source: 1000, last: 9 })])
    assert.equal(
      renderProgress(report, { at, rows: 500 }, at + 1000),
      '1,000 of about 4,000 rows, 500 rows/s, no difference',
    )
    assert.equal(
      renderProgress(report, { at, rows: 0 }, at + 10_000),
      '1,000 of about 4,000 rows, 100 rows/s, 30 s left, no difference',
    )
  })
  it('never tells more rows than there are, and what is unsettled', () => {
    const report = reportOf(tables, [chunk('public.a', { source: 5000, different: 1, unsettled: 2 })])
    assert.equal(
      renderProgress(report, { at, rows: 0 }, at + 10_000),
      '5,000 of about 5,000 rows, 500 rows/s, 1 difference, 2 unsettled',
    )
  })
})

describe('a repair', () => {
  const table = (changes: Partial<RepairTable>): RepairTable => ({
    table: 'public.orders',
    told: 0,
    copied: 0,
    removed: 0,
    written: 0,
    right: 0,
    different: 0,
    unknown: 0,
    first: [],
    ...changes,
  })
  const repaired = (changes: Partial<RepairReport>): string =>
    renderRepair(
      { ...nothingRepaired, found: { at, whole: true, unknown: false }, audit: 'audit', ...changes },
      shown,
      plain,
    )

  it('as a dry run counts what would be written, names the first keys, and the next step', () => {
    const first = [
      { key: ['12'], action: 'copy' },
      { key: ['13'], action: 'remove' },
    ] as const
    const tables = [table({ told: 9, copied: 7, removed: 1, right: 1, first: [...first] })]
    assert.equal(
      repaired({ dryRun: true, verdict: 'different', tables }),
      `shop  ✗ 8 of 9 rows not equal, nothing is written
  What the verification of 2026-01-02 03:04:05Z found; each row is read again
  before it is written.

  public.orders  7 rows would be written as the source has them, 1 would be
  removed, 1 equal now
      write  (12)
      remove (13)
      and 6 more

  next crossfade repair
`,
    )
  })

  it('says what was written and where it is told, and to verify again', () => {
    const tables = [table({ told: 3, written: 2, right: 2, unknown: 1 })]
    const text = repaired({ verdict: 'unknown', tables })
    assert.match(text, /^shop {2}\? 1 of 3 rows not equal\n/)
    assert.match(
      text,
      / public\.orders {2}2 written, 2 equal now, 1 unsettled\n\n {2}Every row written is told in audit\n/,
    )
    assert.match(text, /next crossfade verify\n$/)
  })

  it('of a verification that was interrupted says that more may differ, and to begin anew after it', () => {
    const text = repaired({
      found: { at, whole: false, unknown: false },
      tables: [table({ told: 1, written: 1, right: 1 })],
    })
    assert.match(text, /interrupted: what it had not read may differ as\s+well/)
    assert.match(text, /next crossfade verify --fresh\n$/)
  })

  it('of nothing is equal only where everything was verified', () => {
    assert.match(repaired({}), /^shop {2}● nothing to repair\n[^]*found no row that differs\n$/)
    const unknown = { verdict: 'unknown' } as const
    assert.match(
      repaired({ ...unknown, found: { at, whole: false, unknown: false } }),
      /^shop {2}\? nothing to repair\n[^]*was interrupted[^]*next crossfade verify\n$/,
    )
    assert.match(
      repaired({ ...unknown, found: { at, whole: true, unknown: true } }),
      /^shop {2}\? nothing to repair\n[^]*could\s+not verify\s+everything[^]*next crossfade verify\n$/,
    )
  })
})

describe('crossfade verify', () => {
  const folder = mkdtempSync(join(tmpdir(), 'crossfade-verify-cli-'))
  after(() => rmSync(folder, { recursive: true }))
  for (const file of ['crossfade.yaml', 'other.yaml'])
    writeFileSync(
      join(folder, file),
      `name: ${file.replace(/\..*/, '')}\nsource: { type: store, url: "\${env:SOURCE_URL}" }\ntarget: { type: store, url: "\${env:TARGET_URL}" }\n`,
    )
  const stopped = AbortSignal.abort(new Error('stopped'))
  const done = reportOf([planned('public.a')], [chunk('public.a'), end('equal')])
  const cli = async (
    args: readonly string[],
    pipeline: Partial<Host['pipeline']>,
    changes: Partial<Host> = {},
  ): Promise<{ readonly code: number; readonly out: string; readonly err: string }> => {
    const kept = fakeHost(folder, changes)
    const host: Host = { ...kept.host, ...changes, pipeline: { ...kept.host.pipeline, ...pipeline } }
    const code = await runCli(args, host)
    return { code, out: kept.out, err: kept.err }
  }
  const interrupted: Host['pipeline']['verify'] = async (_config, _connectors, _log, _options, { watch }) => {
    watch(reportOf([planned('public.a', 2)], [chunk('public.a')]))
    throw new Error('stopped', { cause: stopped.reason })
  }

  it('takes several patterns, and the file behind them for the file', async () => {
    let asked: { readonly name: string; readonly tables: VerifyOptions['tables'] } | undefined
    const { code } = await cli(['verify', '--table', 'public.a*', '--table', 'public.b', 'other.yaml'], {
      verify: async (config, _connectors, _log, { tables }) => {
        asked = { name: config.name, tables }
        return done
      },
    })
    assert.equal(code, 0)
    assert.equal(asked?.name, 'other')
    const picked = ['ab', 'b', 'c'].map((name) => asked?.tables?.({ schema: 'public', name }))
    assert.deepEqual(picked, [true, true, false])
  })

  it('ends with 3, never with 1, where it could not be made', async () => {
    for (const code of ['TABLE_MISSING', 'VERIFY_RUNNING', 'BUG'] as const) {
      const verify = (): Promise<never> => Promise.reject(new Failure(code, { observed: 'it failed' }))
      assert.equal((await cli(['verify'], { verify })).code, 3, code)
    }
  })

  it('ended by a signal says what is kept and that it goes on, with the signal’s exit code', async () => {
    const { code, out, err } = await cli(['verify'], { verify: interrupted }, { stop: stopped })
    assert.deepEqual(
      [code, out, err],
      [130, '', 'Stopped: 100 rows are compared, and kept; crossfade verify goes on from there.\n'],
    )
  })

  it('ended by a signal with --json is a document all the same', async () => {
    const { code, out, err } = await cli(['verify', '--json'], { verify: interrupted }, { stop: stopped })
    assert.deepEqual([code, err], [130, ''])
    const { error } = JSON.parse(out) as { readonly error: { readonly code: string; readonly observed: string } }
    assert.equal(error.code, 'INTERRUPTED')
    assert.match(error.observed, /goes on from there/)
  })

  it('draws one line on a terminal, takes it away at the end, and draws none beside JSON', async () => {
    const verify: Host['pipeline']['verify'] = async (_config, _connectors, _log, _options, { watch }) => {
      watch(done)
      return done
    }
    const screen = { isTTY: true, columns: 40, rows: 24, paint: plain }
    let drawn = ''
    const err = { ...screen, write: (text: string) => void (drawn += text) }
    await cli(['verify'], { verify }, { err })
    assert.equal(drawn, '\r\u001b[Klooking at both ends\r\u001b[K')
    drawn = ''
    await cli(['verify', '--json'], { verify }, { err })
    assert.equal(drawn, '')
  })
})
