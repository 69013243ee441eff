import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import fc from 'fast-check'
import {
  formatBytes,
  formatClock,
  formatRange,
  formatSeconds,
  formatShort,
  shorten,
  wrap,
} from '../../../src/cli/format.ts'
import { live } from '../../../src/cli/live.ts'
import { copyProgress, pace, renderFrame, renderLine, renderTables } from '../../../src/cli/progress.ts'
import { plain } from '../../../src/cli/report.ts'
import { renderStatus } from '../../../src/cli/status.ts'
import { statusJson, type TableStatus } from '../../../src/status.ts'
import { copying, statusOf } from './host.ts'

const seen = pace()
const at = (width: number, height = 24): Parameters<typeof renderFrame>[2] => ({ width, height, now: 1_000_400 })

describe('a frame', () => {
  it('shows a copy', () => {
    assert.deepEqual(renderFrame(copying, seen, at(80), plain), [
      'shop  copying  0:00',
      '  ━━━━━━━━━━━━━━━━━━━───────────────────────────────   37 %  ETA not known yet',
      '  1 of 3 tables  5 of 12 chunks  460k of ~1.2M rows  0 rows/s',
      '  read 1.2k/s  applied 1.2k/s  120k waiting  12 changes applied',
      '  TABLE                          STATE             CHUNKS                ROWS',
      '◐ audit.long_lon…_long_long_end  copying             3/10         310k of ~1M',
      '‖ public.later                   waiting                -           0 of ~60k',
      '✓ public.done                    copied               2/2             150,000',
    ])
  })

  it('shows a stream, with a lag that is proved', () => {
    assert.deepEqual(renderFrame(statusOf({}), seen, at(100), plain), [
      'shop  streaming  ● ok  lag 0.4 s  0:00',
      '  read 1.2k/s  applied 1.2k/s  12 waiting  12 changes applied  source keeps 12 MiB',
      '  TABLE          STATE             CHUNKS                ROWS',
      '● public.orders  live               45/45           4,500,000',
      '● public.empty   live                 1/1                   -',
    ])
  })

  it('never shows a lag that is not proved', () => {
    const lag = { seconds: null, proved: false, bytes: null, records: null }
    const now = { ...at(80), now: 1_034_000 }
    const [head] = renderFrame(statusOf({ verdict: 'unknown', lag }), seen, now, plain)
    assert.equal(head, 'shop  streaming  ? unknown  lag unknown, proved up to 0:34 ago  0:00')
    const stale = { ...lag, seconds: 0 }
    assert.match(renderStatus(statusOf({ lag: stale }), 80, plain, 1_034_000), /lag +unknown/)
  })

  it('says what is tried again, on one line', () => {
    const facts = { object: '127.0.0.1:5432', observed: 'connection\nrefused \u001b[31m' }
    const error = { code: 'SERVER_UNREACHABLE', facts, retrying: true, at: 0 } as const
    const lines = renderFrame(statusOf({ error }), seen, at(80), plain)
    assert.equal(lines[2], '▲ SERVER_UNREACHABLE  127.0.0.1:5432: co…ection refused \\u001b[31m; trying again')
  })

  it('of a copy that is complete says so, with tables and rows, and nothing of lag', () => {
    const tables = copying.tables.slice(0, 2).map((table) => ({ ...table, chunksDone: table.chunks, name: 'public.a' }))
    const complete = statusOf({
      phase: 'complete',
      tables,
      lag: { seconds: null, proved: false, bytes: null, records: 5n },
      source: { position: null, slot: null, retainedBytes: null, safeWalBytes: null },
      target: { position: '00000000016b3740', watermarkAt: null },
    })
    const what = '2 tables, 460,000 rows: one exact state of the source'
    assert.equal(renderLine(complete, seen, 0), `shop complete | ${what}`)
    const [title, line, header] = renderFrame(complete, seen, at(80), plain)
    assert.deepEqual([title, line], ['shop  complete  ● ok  0:00', `  ${what}`])
    assert.match(header ?? '', /TABLE/)
    assert.deepEqual(renderStatus(complete, 80, plain, 0).split('\n').slice(0, 4), [
      'shop  complete  ● ok',
      `  copied   ${what}`,
      '  source   keeps nothing for us any more',
      '  target   at 00000000016b3740',
    ])
  })

  it('of a run that ended with an error tells it whole: what, where, when, and what to do', () => {
    const error = {
      code: 'CHECK_FAILED',
      facts: {
        observed: '1 of 9 findings',
        all: [{ object: 'source.slots', observed: 'none free', next: 'drop one' }],
      },
      retrying: false,
      at: Date.UTC(2026, 0, 2, 3, 4, 5),
    } as const
    const text = renderStatus(statusOf({ phase: 'failed', error }), 80, plain, error.at + 60_000 * 5)
    for (const part of [
      /CHECK_FAILED {2}The preflight/,
      /source\.slots\n.*none free\n.*drop one/,
      /2026-01-02T03:04:05Z, 5 min ago/,
    ])
      assert.match(text, part)
    const single = { ...error, code: 'TARGET_DRIFTED', facts: { object: 'public.orders' } } as const
    assert.match(
      renderStatus(statusOf({ error: single }), 80, plain),
      /object +public\.orders\n +next +Someone else writes/,
    )
  })

  it('fits any terminal', () => {
    const table: fc.Arbitrary<TableStatus> = fc.record({
      name: fc.string({ minLength: 1, maxLength: 127 }),
      state: fc.constantFrom('waiting', 'catching up', 'copying', 'copied', 'live', 'stopped'),
      chunksDone: fc.nat(1000),
      chunks: fc.nat(1000),
      rows: fc.bigInt({ min: 0n, max: 10n ** 12n }),
      bytes: fc.constant(0n),
      estimatedRows: fc.bigInt({ min: 0n, max: 10n ** 12n }),
    })
    fc.assert(
      fc.property(
        fc.array(table, { maxLength: 60 }),
        fc.integer({ min: 80, max: 200 }),
        fc.integer({ min: 10, max: 60 }),
        (tables, width, height) => {
          const lines = renderFrame({ ...copying, tables }, seen, at(width, height), plain)
          assert.ok(lines.length < height, `${lines.length} lines of ${height}`)
          for (const line of lines) {
            assert.ok([...new Intl.Segmenter().segment(line)].length <= width, line)
            assert.doesNotMatch(line, /\p{Cc}/u)
          }
        },
      ),
    )
  })

  it('counts what it leaves out', () => {
    const tables = Array.from({ length: 30 }, (_, i): TableStatus => ({
      ...(copying.tables[2] as TableStatus),
      name: `t.${i}`,
    }))
    const lines = renderTables(tables, { width: 80, room: 10 }, plain)
    assert.equal(lines.length, 10)
    assert.equal(lines.at(-1), '  and 22 more tables, 0 of them live')
  })
})

describe('progress', () => {
  it('is complete only once every chunk is', () => {
    const [done, busy] = copying.tables as [TableStatus, TableStatus]
    assert.equal(copyProgress([done]).share, 1)
    assert.equal(copyProgress([{ ...busy, rows: 10n ** 9n, chunksDone: 9 }]).share, 0.99)
    assert.equal(copyProgress([]).share, 0)
    assert.ok(
      copyProgress([{ ...busy, rows: 0n, chunksDone: 9 }]).share >= 0.9,
      'rows of an earlier run count by their chunks',
    )
  })

  it('tells the time left by what was seen', () => {
    const mine = pace()
    for (let second = 0; second <= 20; second++) {
      const [, busy] = copying.tables as [TableStatus, TableStatus]
      const rows = BigInt(second * 10_000)
      mine.observe({ ...copying, tables: [{ ...busy, rows, chunksDone: 0 }] }, second * 1000)
      if (second < 2) assert.equal(mine.left, undefined)
    }
    assert.equal(Math.round(mine.rowsPerSecond), 10_000)
    const [low, high] = mine.left ?? []
    assert.ok(low !== undefined && high !== undefined && low < 80 && high > 80 && high < 90, `${low} to ${high}`)
    assert.equal(mine.elapsed, 20)
  })
})

describe('a live view', () => {
  it('writes a line now and then where nobody redraws', () => {
    let now = 0
    let text = ''
    const screen = { isTTY: false, columns: 80, rows: 24, write: (more: string) => void (text += more) }
    const view = live(screen, plain, { json: false, clock: () => now })
    for (; now <= 12_000; now += 500) view.show(copying)
    view.show(statusOf({}))
    view.end()
    const lines = text.trimEnd().split('\n')
    assert.deepEqual(
      lines.map((line) => line.slice(0, 24)),
      ['00:00:00  shop copying |', '00:00:05  shop copying |', '00:00:10  shop copying |', '00:00:12  shop streaming'],
    )
    assert.equal(lines[3]?.slice(10), 'shop streaming | ok, lag 0.4 s | read 1.2k/s, applied 1.2k/s, 12 waiting')
  })

  it('writes documents for programs', () => {
    let text = ''
    const screen = { isTTY: true, columns: 80, rows: 24, write: (more: string) => void (text += more) }
    live(screen, plain, { json: true }).show(statusOf({}))
    assert.deepEqual(JSON.parse(text), statusJson(statusOf({})))
  })

  it('draws over its last frame', () => {
    let text = ''
    let now = 0
    const screen = { isTTY: true, columns: 80, rows: 24, write: (more: string) => void (text += more) }
    const view = live(screen, plain, { json: false, clock: () => now })
    view.show(copying)
    now += 1000
    text = ''
    view.show(copying)
    assert.ok(text.startsWith('\u001b[?7l\u001b[8A\r\u001b[J'))
  })

  it('keeps a line to itself', () => assert.doesNotMatch(renderLine(copying, seen, 0), /\n/))
})

it('status --json is the documented document, with large numbers as strings', () => {
  assert.deepEqual(
    statusJson(
      statusOf({ error: { code: 'BUG', facts: { observed: 'x', cause: new Error('y') }, retrying: false, at: 5 } }),
    ),
    {
      v: 1,
      pipeline: 'shop',
      phase: 'streaming',
      verdict: 'ok',
      source: {
        position: '00000000016b3748',
        slot: 'crossfade_shop',
        retainedBytes: '12345678',
        safeWalBytes: '3221225472',
      },
      target: { position: '00000000016b3740', watermarkAt: 1_000_000 },
      lag: { seconds: 0.4, proved: true, bytes: null, records: '12' },
      rates: { read: 1234.5, applied: 1200 },
      tables: [
        { name: 'public.orders', state: 'live', chunksDone: 45, chunks: 45, rows: '4500000', bytes: '1' },
        { name: 'public.empty', state: 'live', chunksDone: 1, chunks: 1, rows: '0', bytes: '0' },
      ],
      error: {
        code: 'BUG',
        observed: 'x',
        next: 'Please report this with the text above',
        retrying: false,
        at: 5,
      },
      verification: null,
    },
  )
})

it('numbers read well', () => {
  assert.deepEqual([0, 7, 999, 1000, 12_345, 99_960, 148_000, 999_600, 1_234_567].map(formatShort), [
    '0',
    '7',
    '999',
    '1k',
    '12.3k',
    '100k',
    '148k',
    '1M',
    '1.2M',
  ])
  assert.deepEqual([0, 1023, 1536, 12_345_678, 3 * 1024 ** 3].map(formatBytes), [
    '0 B',
    '1023 B',
    '1.5 KiB',
    '12 MiB',
    '3 GiB',
  ])
  assert.deepEqual([0.04, 9.94, 42, 180, 7500, 273_600].map(formatSeconds), [
    '0.0 s',
    '9.9 s',
    '42 s',
    '3 min',
    '2 h 5 min',
    '3 d 4 h',
  ])
  assert.deepEqual([32, 725, 3729].map(formatClock), ['0:32', '12:05', '1:02:09'])
  assert.deepEqual(
    [formatRange(0.2, 0.5), formatRange(25.2, 30.5), formatRange(290, 410), formatRange(7000, 9000)],
    ['1 s', '25-31 s', '4-7 min', '1-3 h'],
  )
  assert.deepEqual(wrap('one two three\nfour', 7), ['one two', 'three', 'four'])
  assert.equal(shorten('public.orders', 9), 'publ…ders')
})
