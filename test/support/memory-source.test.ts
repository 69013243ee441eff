import { memorySource } from './memory-source.ts'
import { sourceConformance } from '../conformance/source.ts'
import type { TableSchema } from '../../src/model.ts'

const table: TableSchema = {
  table: { schema: 'public', name: 'kv' },
  version: 1,
  columns: [
    { name: 'key', type: 'integer', form: 'int32', nullable: false },
    { name: 'value', type: 'text', form: 'text', nullable: true },
  ],
  key: [0],
  before: 'key',
  shape: 'columns',
  pinned: false,
}

sourceConformance('in memory', async () => {
  const database = memorySource([table])
  return {
    open: async () => database.open(),
    filter: () => true,
    async commit(...changes) {
      database.commit(
        ...changes.map((change) => {
          switch (change.kind) {
            case 'insert':
              return { kind: 'insert', table, row: [String(change.key), change.value] } as const
            case 'update':
              return {
                kind: 'update',
                table,
                key: [String(change.key)],
                row: [String(change.newKey ?? change.key), change.value],
              } as const
            case 'delete':
              return { kind: 'delete', table, key: [String(change.key)] } as const
            case 'truncate':
              return { kind: 'truncate', tables: [table] } as const
            default:
              return change satisfies never
          }
        }),
      )
      await new Promise((resolve) => setImmediate(resolve))
    },
    [Symbol.asyncDispose]: async () => {},
  }
})
