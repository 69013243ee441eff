import type { TableReader } from '../connector.ts'
import { Failure } from '../errors.ts'
import type { Rows } from '../rows.ts'

/** A reader none of whose statements, and so none of whose snapshots, lasts longer than `ms`: LIMIT_EXCEEDED. */
export function timed(reader: TableReader, ms: number): TableReader {
  const within = async <T>(signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> => {
    const late = AbortSignal.timeout(ms)
    try {
      return await work(AbortSignal.any([signal, late]))
    } catch (error) {
      if (signal.aborted || !late.aborted) throw error
      throw new Failure('LIMIT_EXCEEDED', { observed: `reading it took longer than ${ms / 1000} s` })
    }
  }
  const digest = reader.digest?.bind(reader)
  return {
    ranges: async (schema, rows, signal) =>
      await within(signal, async (signal) => await reader.ranges(schema, rows, signal)),
    split: async (schema, range, rows, signal) =>
      await within(signal, async (signal) => await reader.split(schema, range, rows, signal)),
    async *rows(schema, range, signal) {
      const late = new AbortController()
      const timer = setTimeout(() => late.abort(), ms)
      try {
        yield* reader.rows(schema, range, AbortSignal.any([signal, late.signal])) satisfies AsyncIterable<Rows>
      } catch (error) {
        if (signal.aborted || !late.signal.aborted) throw error
        throw new Failure('LIMIT_EXCEEDED', { observed: `reading it took longer than ${ms / 1000} s` })
      } finally {
        clearTimeout(timer)
      }
    },
    lookup: async (schema, keys, signal) =>
      await within(signal, async (signal) => await reader.lookup(schema, keys, signal)),
    copies: async (schema, rows, signal) =>
      await within(signal, async (signal) => await reader.copies(schema, rows, signal)),
    ...(digest && {
      digest: async (schema, range, signal) =>
        await within(signal, async (signal) => await digest(schema, range, signal)),
    }),
    [Symbol.asyncDispose]: async () => await reader[Symbol.asyncDispose](),
  }
}
