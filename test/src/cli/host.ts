import type { Begin } from '../../../src/verify/journal.ts'
import type { RepairReport } from '../../../src/verify/repair.ts'
import { emptyReport } from '../../../src/verify/report.ts'
import type { Host } from '../../../src/cli/commands.ts'
import { plain } from '../../../src/cli/report.ts'
import type { Connector } from '../../../src/connector.ts'
import { silent } from '../../../src/logger.ts'
import type { Status } from '../../../src/status.ts'

const connector: Connector = {
  name: 'store',
  parse: (raw) => raw,
  openSource: () => Promise.reject(new Error('not here')),
  openSink: () => Promise.reject(new Error('not here')),
}

/** A host that keeps what is written. */
export function fakeHost(cwd: string, changes: Partial<Host>): { readonly host: Host; out: string; err: string } {
  const size = { isTTY: false, columns: 80, rows: 24, paint: plain }
  const kept = {
    out: '',
    err: '',
    host: {
      version: '1.2.3',
      typed: 'crossfade',
      env: { SOURCE_URL: 'store://ana:s3cret!@one/shop', TARGET_URL: 'store://ana:s3cret!@two/shop' },
      cwd,
      out: { ...size, write: (text: string) => void (kept.out += text) },
      err: { ...size, write: (text: string) => void (kept.err += text) },
      types: ['store'],
      connectors: async () => connector,
      logger: () => silent,
      stop: new AbortController().signal,
      exit: () => 130,
      pipeline: {
        check: async () => [],
        run: async () => 'complete' as const,
        status: async () => statusOf({}),
        verify: async () => emptyReport(nothingPlanned),
        verifyUntilStopped: async () => undefined,
        repair: async () => nothingRepaired,
      },
      ...changes,
    } satisfies Host,
  }
  return kept
}

export const nothingRepaired: RepairReport = {
  pipeline: 'shop',
  dryRun: false,
  verdict: 'equal',
  tables: [],
  found: { at: 0, whole: true, unknown: false },
  audit: 'shop.repairs.jsonl',
}

export const nothingPlanned: Begin = { kind: 'begin', v: 1, pipeline: 'shop', at: 0, withValues: false, tables: [] }

export function statusOf(changes: Partial<Status>): Status {
  return {
    pipeline: 'shop',
    phase: 'streaming',
    verdict: 'ok',
    source: {
      position: '00000000016b3748',
      slot: 'crossfade_shop',
      retainedBytes: 12_345_678n,
      safeWalBytes: 3n * 1024n ** 3n,
    },
    target: { position: '00000000016b3740', watermarkAt: 1_000_000 },
    lag: { seconds: 0.4, proved: true, bytes: null, records: 12n },
    rates: { read: 1234.5, applied: 1200 },
    tables: [
      { name: 'public.orders', state: 'live', chunksDone: 45, chunks: 45, rows: 4_500_000n, bytes: 1n },
      { name: 'public.empty', state: 'live', chunksDone: 1, chunks: 1, rows: 0n, bytes: 0n, estimatedRows: 0n },
    ],
    error: null,
    totals: { applied: 12n },
    ...changes,
  }
}

export const copying: Status = statusOf({
  phase: 'copying',
  verdict: 'unknown',
  target: { position: null, watermarkAt: null },
  lag: { seconds: null, proved: false, bytes: null, records: 120_000n },
  tables: [
    {
      name: 'public.done',
      state: 'copied',
      chunksDone: 2,
      chunks: 2,
      rows: 150_000n,
      bytes: 1n,
      estimatedRows: 140_000n,
    },
    {
      name: `audit.${'long_'.repeat(12)}end`,
      state: 'copying',
      chunksDone: 3,
      chunks: 10,
      rows: 310_000n,
      bytes: 1n,
      estimatedRows: 1_000_000n,
    },
    { name: 'public.later', state: 'waiting', chunksDone: 0, chunks: 0, rows: 0n, bytes: 0n, estimatedRows: 60_000n },
  ],
})
