import { createReadStream } from 'node:fs'
import { open, rename, type FileHandle } from 'node:fs/promises'
import { dirname } from 'node:path'
import { Failure } from '../errors.ts'
import type { Position, Range } from '../model.ts'
import type { ShapeDifference } from './shapes.ts'

/** Equal, or different, or not known: nothing else counts as verified. */
export type Verdict = 'equal' | 'different' | 'unknown'
/** A table as it is verified: what was compared, and in which pieces. `why`: it cannot be verified, and is not read. */
export type Planned = {
  readonly table: string
  readonly columns: readonly string[]
  readonly key: readonly string[]
  readonly ranges: readonly Range[]
  readonly why?: string
}
/** Times in ms since 1970. */
export type Begin = {
  readonly kind: 'begin'
  readonly v: 1
  readonly pipeline: string
  readonly at: number
  readonly withValues: boolean
  readonly tables: readonly Planned[]
  /** Tables of the pipeline that were not asked for. */
  readonly others?: number
  /** Which running databases were compared: another one, or one that was put back since, is another matter. */
  readonly servers?: readonly string[]
}
/** What the tables are made of, compared once a run. `why`: it could not be. */
export type ShapesLine = {
  readonly kind: 'shapes'
  readonly at: number
  readonly verdict: Verdict
  readonly why?: string
  readonly differences: readonly ShapeDifference[]
}
/** A row that differs. `columns`: those in which it does, of a row that is at both ends; their values only where they were asked for. `copies`: of a row
 *  without a key, how often it is at the source and at the target. */
export type DifferenceLine = {
  readonly kind: 'difference'
  readonly table: string
  readonly what: 'only source' | 'only target' | 'different' | 'copies'
  readonly key: readonly (string | null)[]
  readonly columns: readonly {
    readonly name: string
    readonly source?: string | null
    readonly target?: string | null
  }[]
  readonly copies?: readonly [number, number]
  readonly position: Position
  readonly firstSeen: number
  readonly rechecks: number
}
/** A row of which nothing could be said. */
export type UnsettledLine = {
  readonly kind: 'unsettled'
  readonly table: string
  readonly key: readonly (string | null)[]
  readonly why: string
  readonly rechecks: number
}
/** Ranges `first` to `last` of a table's are done; the lines since the one before are of them. */
export type ChunkLine = {
  readonly kind: 'chunk'
  readonly table: string
  readonly first: number
  readonly last: number
  readonly at: number
  /** Read after the target had applied everything up to there. */
  readonly asOf?: Position
  readonly verdict: Verdict
  readonly why?: string
  /** Not all of its rows could be read. */
  readonly unread?: true
  readonly source: number
  readonly target: number
  readonly onlySource: number
  readonly onlyTarget: number
  readonly different: number
  readonly unsettled: number
  /** Rows that differed when they were first seen, and were under way. */
  readonly transient: number
  readonly rechecks: number
}
/** `why`: what keeps the whole from being equal though its parts may be. */
export type End = {
  readonly kind: 'end'
  readonly at: number
  readonly verdict: Verdict
  readonly why?: string
  readonly throttledMs: number
}
export type Line = Begin | ShapesLine | DifferenceLine | UnsettledLine | ChunkLine | End

/** What a verification has found so far, on disk: appended chunk by chunk, so that one that was killed goes on behind the last. For one process at a time. */
export interface Journal extends AsyncDisposable {
  /** Durable when it resolves, all or none. */
  append(lines: readonly Line[]): Promise<void>
}

/** Begins anew; a former one is replaced once this one's beginning is on disk. Only its owner may read the file: it names keys. */
export async function createJournal(path: string, begin: Begin): Promise<Journal> {
  const draft = `${path}.new`
  const file = await open(draft, 'w', 0o600)
  const journal = writer(file, 0)
  await journal.append([begin])
  await rename(draft, path)
  const folder = await open(dirname(path))
  await folder.sync()
  await folder.close()
  return journal
}

/** Goes on behind its last whole chunk. */
export async function resumeJournal(path: string): Promise<Journal> {
  const file = await open(path, 'r+')
  let kept = 0
  for await (const { end } of chunks(path)) kept = end
  await file.truncate(kept)
  return writer(file, kept)
}

/** Appends behind `end`. After a failure nothing more is appended: what came half way is cut off by whoever goes on. */
function writer(file: FileHandle, end: number): Journal {
  let last: Promise<void> = Promise.resolve()
  let at = end
  const write = async (lines: readonly Line[]): Promise<void> => {
    const bytes = Buffer.from(lines.map((line) => `${JSON.stringify(line)}\n`).join(''))
    for (let done = 0; done < bytes.length;) {
      const { bytesWritten } = await file.write(bytes, done, bytes.length - done, at + done)
      done += bytesWritten
    }
    await file.datasync()
    at += bytes.length
  }
  return {
    append: (lines) => (last = last.then(async () => await write(lines))),
    async [Symbol.asyncDispose]() {
      await last.catch(() => {})
      await file.close()
    },
  }
}

/** Lines of whole chunks, in the order they were written. UNSUPPORTED for a file of another version, LOG_DAMAGED where a line in the middle cannot be
 *  read. */
export async function* readJournal(path: string): AsyncGenerator<Line, void, void> {
  for await (const { lines } of chunks(path)) yield* lines
}

type Piece = { readonly lines: readonly Line[]; readonly end: number }

/** A line that ends a piece, with those before it; what a crash left of an unfinished one is passed over. */
async function* chunks(path: string): AsyncGenerator<Piece, void, void> {
  let lines: Line[] = []
  let torn: number | undefined
  for await (const { text, end } of endedLines(path)) {
    if (torn !== undefined)
      throw new Failure('LOG_DAMAGED', {
        object: path,
        observed: `the line before byte ${torn} cannot be read`,
        next: 'Verify again: crossfade verify --fresh',
      })
    let line: Line
    try {
      line = JSON.parse(text) as Line
    } catch {
      torn = end
      continue
    }
    if (line.kind === 'begin' && line.v !== 1)
      throw new Failure('UNSUPPORTED', { object: path, observed: `version ${String(line.v)}`, needed: 'version 1' })
    lines.push(line)
    if (line.kind === 'difference' || line.kind === 'unsettled') continue
    yield { lines, end }
    lines = []
  }
}

/** Lines that a line feed ends, and nothing else does: keys and values may hold every other character. */
async function* endedLines(path: string): AsyncGenerator<{ readonly text: string; readonly end: number }, void, void> {
  let held: Buffer[] = []
  let end = 0
  for await (const read of createReadStream(path)) {
    const piece = read as Buffer
    let from = 0
    for (let to = piece.indexOf(10); to >= 0; to = piece.indexOf(10, from)) {
      const line = Buffer.concat([...held, piece.subarray(from, to)])
      held = []
      from = to + 1
      end += line.length + 1
      yield { text: line.toString(), end }
    }
    held.push(piece.subarray(from))
  }
}
