import type { ClientBase } from 'pg'
import type { Epoch, TableId, TopicPartition } from '../../src/model.ts'
import { selectPartitions } from './sink-queries.ts'

/** These tables' copies, chunks and checkpoints; resolves to those of a higher epoch, and then nothing was deleted. */
export async function deleteCopies(
  client: ClientBase,
  pipeline: string,
  tables: readonly TableId[],
  epoch: Epoch,
): Promise<readonly TableId[]> {
  const given = [pipeline, tables.map(({ schema }) => schema), tables.map(({ name }) => name)]
  const these =
    'pipeline = $1 and (table_schema, table_name) in (select s, n from unnest($2::text[], $3::text[]) u (s, n))'
  const { rows } = await client.query<TableId & { later: boolean; partitions: readonly TopicPartition[] }>(
    `select table_schema as schema, table_name as name, epoch > $4 as later, partitions from crossfade.copy
      where ${these} order by table_schema, table_name for update`,
    [...given, epoch],
  )
  const refused = rows.filter(({ later }) => later)
  if (refused.length > 0) return refused
  await client.query(`delete from crossfade.copy where ${these}`, given)
  await client.query(`delete from crossfade.chunk where ${these}`, given)
  const all = rows.flatMap(({ partitions }) => partitions)
  await selectPartitions(client, pipeline, all, true)
  await client.query(
    `delete from crossfade.checkpoint
      where pipeline = $1 and (topic, part) in (select t, p from unnest($2::text[], $3::int[]) u (t, p))`,
    [pipeline, all.map(({ topic }) => topic), all.map(({ partition }) => partition)],
  )
  return []
}
