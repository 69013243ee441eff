import { Failure } from '../../src/errors.ts'
import { partitionName, type Checkpoint, type TableSchema, type TopicPartition } from '../../src/model.ts'
import type { Mending } from '../../src/rows.ts'
import { slice } from './arrays.ts'
import type { Session } from './lane-session.ts'
import { selectCopies } from './lookup.ts'
import { qualified } from './queries.ts'
import { selectPartitions } from './sink-queries.ts'
import { appendStatement, type Plan } from './statements.ts'

/** The partition's lane waits as long: also for a process that was stopped while it had the lock. */
const heldMs = 15_000
/** Lanes do without; here a few rows are looked for in a whole table. */
const joins = 'set local enable_hashjoin = on; set local enable_mergejoin = on; set local enable_seqscan = on'

/** Writes the rows as `read` finds them while the partition stands still: no batch of it commits between the reading and this. */
export async function repair(
  session: Session,
  at: TopicPartition,
  schema: TableSchema,
  read: (at: Checkpoint) => Promise<Mending>,
): Promise<void> {
  const { client, pipeline, out, name } = session
  const plan = await session.plan(schema)
  const settings = `set local idle_in_transaction_session_timeout = '${heldMs}'; ${schema.key.length === 0 ? joins : ''}`
  await session.durably(async () => {
    const [checkpoint] = await selectPartitions(client, pipeline, [at], true)
    if (!checkpoint) throw new Failure('BUG', { object: partitionName(at), observed: 'no checkpoint' })
    const mending = await read(checkpoint)
    const { keys, rows } = mending
    if (schema.key.length === 0) await appendCopies(session, plan, mending)
    else {
      const isThere = (i: number): boolean => rows.starts[i] !== rows.starts[i + 1]
      // Under a key that is equal and prints differently an upsert would leave the key as it is.
      for (let i = 0; i < keys.count; i++)
        if (schema.pinned || !isThere(i)) appendStatement(out, plan, 'delete', schema.key, slice(keys, i, 1), name)
      for (let i = 0; i < rows.count; i++)
        if (isThere(i)) appendStatement(out, plan, 'upsert', plan.all, slice(rows, i, 1), name)
    }
    await session.send()
  }, settings)
}

async function appendCopies({ client, out, name }: Session, plan: Plan, { rows, copies }: Mending): Promise<void> {
  const { schema } = plan
  const columns = plan.columns.flatMap((column) => column ?? [])
  if (columns.length < plan.columns.length)
    throw new Failure('TARGET_SHAPE', {
      observed: 'the target computes a column of a table without a key',
      next: 'Copy the table again',
    })
  const there = await selectCopies(client, schema, { columns, key: [] }, rows)
  const surplus: string[] = []
  for (let i = 0; i < rows.count; i++) {
    const wanted = copies?.[i] ?? 0
    const found = there[i] ?? []
    for (const version of found.slice(wanted)) surplus.push(version.slice(version.indexOf(' ') + 1))
    for (let more = found.length; more < wanted; more++)
      appendStatement(out, plan, 'insert', plan.all, slice(rows, i, 1), name)
  }
  if (surplus.length > 0)
    await client.query(`delete from only ${qualified(schema.table)} where ctid = any($1::tid[])`, [surplus])
}
