import { createHash } from 'node:crypto'
import type { Finding } from '../connector.ts'
import { Failure } from '../errors.ts'
import { tableName, type TableId, type TableSchema } from '../model.ts'

/** Where a table's records go; stored when first decided, and from then on a function of position. `pinned`: partition 0 whatever the key. */
export type Route = {
  readonly table: TableId
  readonly topic: string
  readonly partitions: number
  readonly pinned: boolean
}

const longest = 200
const digestLength = 16
/** Tables with fewer rows, by estimate when the route is made, get one partition. */
const smallTable = 100_000
/** Partitions a broker bears well, and at all. */
const manyPartitions = 4_000
const tooManyPartitions = 15_000

export function topicName(pipeline: string, table: TableId): string {
  const name = `${escape(pipeline)}.${escape(table.schema)}.${escape(table.name)}`
  if (name.length <= longest) return name
  const digest = createHash('sha256').update(name).digest('hex').slice(0, digestLength)
  return `${name.slice(0, longest - digestLength - 1)}-${digest}`
}

/** Watermarks and barriers. */
export function controlTopic(pipeline: string): string {
  return `${escape(pipeline)}.control`
}

/** The schemas records are written with, by id; compacted. */
export function schemasTopic(pipeline: string): string {
  return `${escape(pipeline)}.schemas`
}

/** Changes passed over by an operator's decision, with their context. */
function skippedTopic(pipeline: string): string {
  return `${escape(pipeline)}.skipped`
}

/** First routes of these tables. CONFIG_INVALID if two topics would have the same name, or names a broker cannot tell apart in its metrics (dot and
 *  underscore). */
export function routes(
  pipeline: string,
  tables: readonly { readonly schema: TableSchema; readonly estimatedRows: number }[],
  partitions: number,
): readonly Route[] {
  const taken = new Map<string, string>()
  for (const topic of [controlTopic(pipeline), schemasTopic(pipeline), skippedTopic(pipeline)])
    taken.set(likeMetrics(topic), `topic ${topic}`)
  return tables.map(({ schema, estimatedRows }) => {
    const topic = topicName(pipeline, schema.table)
    const other = taken.get(likeMetrics(topic))
    if (other !== undefined) {
      throw new Failure('CONFIG_INVALID', {
        object: `table ${tableName(schema.table)}`,
        observed: `its topic ${topic} would collide with that of ${other}`,
        next: 'Exclude one of the two in tables.exclude, or give it a pipeline of its own',
      })
    }
    taken.set(likeMetrics(topic), `table ${tableName(schema.table)}`)
    const { pinned } = schema
    return { table: schema.table, topic, partitions: pinned || estimatedRows < smallTable ? 1 : partitions, pinned }
  })
}

/** Whether the brokers bear these partitions (each is counted once a replica). */
export function partitionBudget(all: readonly Route[], brokers: number, replication = 1): Finding {
  const partitions = all.reduce((sum, route) => sum + route.partitions, 0)
  const each = Math.ceil((partitions * replication) / Math.max(1, brokers))
  const observed = `${partitions} partitions of ${all.length} topics, ${each} on each of ${brokers} broker${brokers === 1 ? '' : 's'}`
  const id = 'log.partitions'
  if (each <= manyPartitions) return { id, level: 'ok', observed, needed: `at most ${manyPartitions} on a broker` }
  const level = each > tooManyPartitions ? 'blocker' : 'warning'
  const bound = each > tooManyPartitions ? tooManyPartitions : manyPartitions
  return {
    id,
    level,
    observed,
    needed: `at most ${bound} on a broker`,
    remedy: 'Lower log.partitions, exclude tables, split the pipeline, or add brokers',
  }
}

function escape(part: string): string {
  return part.replace(
    /[^A-Za-z0-9_]/gu,
    (character) =>
      `-${Buffer.from(character)
        .toString('hex')
        .replace(/..(?=.)/g, '$&-')}`,
  )
}

function likeMetrics(topic: string): string {
  return topic.replaceAll('.', '_')
}
