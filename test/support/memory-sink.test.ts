import { sinkConformance } from '../conformance/sink.ts'
import { memorySink } from './memory-sink.ts'

sinkConformance('in memory', async () => {
  const sink = memorySink()
  return {
    sink,
    rows: async (table) => sink.rows(table),
    [Symbol.asyncDispose]: async () => await sink[Symbol.asyncDispose](),
  }
})
