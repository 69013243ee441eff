import { appendFile } from 'node:fs/promises'
import { userInfo } from 'node:os'
import { compileEncoder } from '../avro/encoder.ts'
import { framing } from '../avro/plan.ts'
import type { Lane, Sink, Source } from '../connector.ts'
import { asFailure } from '../errors.ts'
import { hashRing } from '../hash-ring.ts'
import { partitionName, tableName, type TableSchema, type TopicPartition } from '../model.ts'
import { Output } from '../output.ts'
import type { Registered } from '../registry.ts'
import { rowsOf, type Mending } from '../rows.ts'
import { cellsOf, type Ends, type Suspect } from './compare.ts'
import type { DifferenceLine } from './journal.ts'
import type { Action, RepairTable } from './repair.ts'
import { isSame, readRows, settle, type Found, type Witness } from './settle.ts'

/** As long may the partition's lane be kept waiting for the source to answer. */
const heldMs = 3_000
/** Rows of a table that are named before they are written. */
const firstOfTable = 5

/** A row of the report, and both ends' as they were seen. */
type Sighted = { readonly suspect: Suspect; readonly source: Found; readonly target: Found }

export interface Mender extends AsyncDisposable {
  /** Counts what each of these rows of a table needs at this moment; writes nothing. */
  look(table: Registered, lines: readonly DifferenceLine[], tally: RepairTable, signal: AbortSignal): Promise<void>
  /** Of one table. Counts what came of each of these in `tally`, but for those that the target refuses. */
  mend(table: Registered, lines: readonly DifferenceLine[], tally: RepairTable, signal: AbortSignal): Promise<void>
  /** Tries those again, together and one by one, as long as there are fewer, and counts what came of them. */
  finish(signal: AbortSignal): Promise<void>
}

/** `audit`: where each row is told before it is written. `settleMs`: until a row that changes all the time is left as it is. */
export function openMender(
  source: Source,
  sink: Sink,
  witness: Witness,
  { settleMs }: { readonly settleMs: number },
  audit: string,
): Mender {
  let ends: Ends | undefined
  let lane: Lane | undefined
  const open = async (signal: AbortSignal): Promise<Ends> =>
    (ends ??= { source: await source.reader('now', signal), target: await sink.reader(signal) })
  /** What of these may be written now: both ends' rows are still the ones that were seen before everything up to then was applied, so no change of it
   *  waits behind the checkpoint, and they differ. `rest`: those whose turn it is not. A row that came and went meanwhile shows at the target, or is
   *  wholly behind the checkpoint. */
  const due = async (
    ends: Ends,
    schema: TableSchema,
    some: readonly Sighted[],
    signal: AbortSignal,
  ): Promise<{ readonly due: readonly Sighted[]; readonly rest: readonly Sighted[] }> => {
    const held = AbortSignal.any([signal, AbortSignal.timeout(heldMs)])
    try {
      await source.visible(held)
      const suspects = some.map(({ suspect }) => suspect)
      const now = await readRows(ends.source, schema, suspects, held)
      const there = await readRows(ends.target, schema, suspects, held)
      const still = ({ source, target }: Sighted, i: number): boolean =>
        source.versions === now[i]?.versions && target.versions === there[i]?.versions
      return {
        due: some.filter((row, i) => still(row, i) && !isSame(row.source, row.target)),
        rest: some.filter((row, i) => !still(row, i)),
      }
    } catch (error) {
      if (signal.aborted || !held.aborted) throw error
      return { due: [], rest: some }
    }
  }
  const refused: { readonly table: Registered; readonly suspects: readonly Suspect[]; readonly tally: RepairTable }[] =
    []
  /** Resolves to those that the target refuses: a value that another row has, which is yet to be repaired, perhaps. */
  const write = async (
    { schema, route }: Registered,
    suspects: readonly Suspect[],
    tally: RepairTable,
    signal: AbortSignal,
  ): Promise<ReadonlySet<Suspect>> => {
    const ends = await open(signal)
    const writing = (lane ??= await sink.lane(signal))
    const until = AbortSignal.any([signal, AbortSignal.timeout(settleMs)])
    const place = placing(schema, route)
    const apart = new Set<Suspect>()
    let left = suspects
    try {
      while (left.length > 0) {
        const there = await readRows(ends.target, schema, left, until)
        const here = await readRows(ends.source, schema, left, until)
        await witness.applied(await witness.visible(until), until)
        const sighted = left.flatMap((suspect, i): Sighted[] => {
          const [source, target] = [here[i], there[i]]
          return source && target ? [{ suspect, source, target }] : []
        })
        const byPlace = Map.groupBy(sighted, ({ suspect }) => partitionName(place(suspect.key)))
        left = []
        for (const some of byPlace.values()) {
          const [first] = some
          if (first === undefined) continue
          let found: Awaited<ReturnType<typeof due>> = { due: [], rest: [] }
          const read = async (): Promise<Mending> => {
            found = await due(ends, schema, some, until)
            await record(audit, schema, found.due)
            return mendingOf(schema, found.due)
          }
          try {
            await writing.repair(place(first.suspect.key), schema, read, signal)
            tally.written += found.due.length
          } catch (error) {
            if (asFailure(error).code !== 'ROW_REJECTED') throw error
            for (const { suspect } of found.due) apart.add(suspect)
          }
          left = [...left, ...found.rest.map(({ suspect }) => suspect)]
        }
      }
    } catch (error) {
      if (signal.aborted || !until.aborted) throw error
    }
    return apart
  }
  const count = async (
    { schema }: Registered,
    suspects: readonly Suspect[],
    tally: RepairTable,
    signal: AbortSignal,
  ): Promise<void> => {
    for (const { kind } of await settle(await open(signal), schema, suspects, witness, settleMs, signal)) {
      if (kind === 'same') tally.right++
      else tally[kind]++
    }
  }
  return {
    async look({ schema }, lines, tally, signal) {
      const ends = await open(signal)
      const suspects = lines.map(({ key }): Suspect => ({ key }))
      const there = await readRows(ends.target, schema, suspects, signal)
      const here = await readRows(ends.source, schema, suspects, signal)
      for (const [i, row] of here.entries()) {
        const action: Action = row.copies === 0 ? 'remove' : 'copy'
        if (isSame(row, there[i] ?? row)) tally.right++
        else {
          if (action === 'copy') tally.copied++
          else tally.removed++
          if (tally.first.length < firstOfTable) tally.first.push({ key: suspects[i]?.key ?? [], action })
        }
      }
    },
    async mend(table, lines, tally, signal) {
      const suspects = lines.map(({ key }): Suspect => ({ key }))
      const apart = await write(table, suspects, tally, signal)
      if (apart.size > 0) refused.push({ table, suspects: [...apart], tally })
      await count(
        table,
        suspects.filter((suspect) => !apart.has(suspect)),
        tally,
        signal,
      )
    },
    async finish(signal) {
      for (const [tally, all] of Map.groupBy(refused, ({ tally }) => tally)) {
        const [first] = all
        if (first === undefined) continue
        const suspects = all.flatMap(({ suspects }) => suspects)
        let left: ReadonlySet<Suspect> = new Set(suspects)
        for (let before = Infinity; left.size > 0 && left.size < before;) {
          before = left.size
          left = await write(first.table, [...left], tally, signal)
          const again = new Set<Suspect>()
          for (const one of left) for (const still of await write(first.table, [one], tally, signal)) again.add(still)
          left = again
        }
        await count(first.table, suspects, tally, signal)
      }
    },
    async [Symbol.asyncDispose]() {
      const all = [ends?.source, ends?.target, lane]
      await Promise.allSettled(all.map(async (each) => await each?.[Symbol.asyncDispose]()))
    },
  }
}

/** Which partition a row's changes go through. */
function placing(
  schema: TableSchema,
  { topic, partitions, pinned }: Registered['route'],
): (key: readonly (string | null)[]) => TopicPartition {
  if (pinned || partitions === 1 || schema.key.length === 0) return () => ({ topic, partition: 0 })
  const encoder = compileEncoder(schema)
  const ring = hashRing(partitions)
  const out = new Output(1024)
  return (key) => {
    const cells = schema.columns.map((_, column): string | null => key[schema.key.indexOf(column)] ?? null)
    out.clear()
    encoder.key(out, rowsOf([cellsOf(cells)]), 0)
    return { topic, partition: ring.partition(out.bytes, framing, out.at) }
  }
}

function mendingOf(schema: TableSchema, due: readonly Sighted[]): Mending {
  const keys = rowsOf(due.map(({ suspect }) => cellsOf(suspect.key)))
  if (schema.key.length === 0) return { keys, rows: keys, copies: due.map(({ source }) => source.copies) }
  return { keys, rows: rowsOf(due.map(({ source: { row } }) => (row === undefined ? [] : cellsOf(row)))) }
}

/** Durable before the row is: what is told may not have been done, what was done is told. */
async function record(audit: string, schema: TableSchema, written: readonly Sighted[]): Promise<void> {
  if (written.length === 0) return
  const at = new Date().toISOString()
  const table = tableName(schema.table)
  const lines = written.map(({ suspect: { key }, source, target }) => {
    const action: Action = source.copies < target.copies ? 'remove' : 'copy'
    return `${JSON.stringify({ at, by: operator(), table, key, action, found: target.copies, copies: source.copies })}\n`
  })
  await appendFile(audit, lines.join(''), { mode: 0o600, flush: true })
}

/** By number where this machine has no name for him, as in many containers. */
function operator(): string {
  try {
    return userInfo().username
  } catch {
    return `user ${process.getuid?.()}`
  }
}
