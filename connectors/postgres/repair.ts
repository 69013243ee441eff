import { Failure } from '../../src/errors.ts'
import { partitionName, type Checkpoint, type TableSchema, type TopicPartition } from '../../src/model.ts'
import type { Rows } from '../../src/rows.ts'
import { slice } from './arrays.ts'
import type { Session } from './lane-session.ts'
import { selectPartitions } from './sink-queries.ts'
import { appendStatement } from './statements.ts'

/** Writes the rows as `read` finds them while the partition stands still: no batch of it commits between the reading and this. */
export async function repair(
  session: Session,
  at: TopicPartition,
  schema: TableSchema,
  keys: Rows,
  read: (at: Checkpoint) => Promise<Rows>,
): Promise<void> {
  const { client, pipeline, out, name } = session
  const plan = await session.plan(schema)
  await session.durably(async () => {
    const [checkpoint] = await selectPartitions(client, pipeline, [at], true)
    if (!checkpoint) throw new Failure('BUG', { object: partitionName(at), observed: 'no checkpoint' })
    const rows = await read(checkpoint)
    const isThere = (i: number): boolean => rows.starts[i] !== rows.starts[i + 1]
    for (let i = 0; i < keys.count; i++)
      if (!isThere(i)) appendStatement(out, plan, 'delete', schema.key, slice(keys, i, 1), name)
    for (let i = 0; i < rows.count; i++)
      if (isThere(i)) appendStatement(out, plan, 'upsert', plan.all, slice(rows, i, 1), name)
    await session.send()
  })
}
