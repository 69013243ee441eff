import assert from 'node:assert/strict'
import { appendFile, mkdtemp, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { Failure } from '../../../src/errors.ts'
import type { Position } from '../../../src/model.ts'
import {
  createJournal,
  readJournal,
  resumeJournal,
  type Begin,
  type ChunkLine,
  type DifferenceLine,
  type Line,
} from '../../../src/verify/journal.ts'

const begin: Begin = { kind: 'begin', v: 1, pipeline: 'shop', at: 1, withValues: false, tables: [] }
const difference = (key: string): DifferenceLine => ({
  kind: 'difference',
  table: 'public.t',
  what: 'different',
  key: [key],
  columns: [{ name: 'a\u2028b\u0085c\rd' }],
  position: '0' as Position,
  firstSeen: 2,
  rechecks: 1,
})
const chunk = (first: number): ChunkLine => ({
  kind: 'chunk',
  table: 'public.t',
  first,
  last: first,
  at: 3,
  verdict: 'different',
  source: 1,
  target: 1,
  onlySource: 0,
  onlyTarget: 0,
  different: 1,
  unsettled: 0,
  transient: 0,
  rechecks: 1,
})
const first = [difference('line\u2028separator \u2029 é'), difference('\n\r"\\'), chunk(0)]
const second = [difference('x'.repeat(200_000)), chunk(1)]

describe('the journal of a verification', () => {
  let dir: string
  let path: string
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'crossfade-journal-'))
    path = join(dir, 'shop.verify.jsonl')
  })
  afterEach(async () => await rm(dir, { recursive: true }))

  async function read(): Promise<readonly Line[]> {
    const lines: Line[] = []
    for await (const line of readJournal(path)) lines.push(line)
    return lines
  }

  it('brings back what was written, whatever characters it holds, and lets only its owner read it', async () => {
    {
      await using journal = await createJournal(path, begin)
      await Promise.all([journal.append(first), journal.append(second)])
    }
    assert.deepEqual(await read(), [begin, ...first, ...second])
    assert.equal((await stat(path)).mode & 0o777, 0o600)
  })

  it('cut anywhere, goes on behind its last whole piece', async () => {
    {
      await using journal = await createJournal(path, begin)
      await journal.append(first)
    }
    const kept = (await stat(path)).size
    await appendFile(path, second.map((line) => `${JSON.stringify(line)}\n`).join(''))
    const whole = await readFile(path)
    for (const cut of [kept, kept + 1, kept + 1000, whole.length - 200, whole.length - 2, whole.length - 1]) {
      await writeFile(path, whole)
      await truncate(path, cut)
      assert.deepEqual(await read(), [begin, ...first], `cut at ${cut} of ${whole.length}`)
      await using journal = await resumeJournal(path)
      await journal.append(second)
      assert.deepEqual(await read(), [begin, ...first, ...second])
    }
  })

  it('tells of a line in its middle that cannot be read', async () => {
    await writeFile(path, `${JSON.stringify(begin)}\n{"kind":"differ\n${JSON.stringify(chunk(0))}\n`)
    await assert.rejects(read(), (error) => error instanceof Failure && error.code === 'LOG_DAMAGED')
  })
})
