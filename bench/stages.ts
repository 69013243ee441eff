import pg from 'pg'
import { openSink } from '../connectors/postgres/sink.ts'
import { slice } from '../connectors/postgres/arrays.ts'
import { parse } from '../connectors/postgres/config.ts'
import { readCatalog } from '../connectors/postgres/schema.ts'
import { appendStatement, planTable } from '../connectors/postgres/statements.ts'
import { changeQueue } from '../connectors/postgres/change-queue.ts'
import { decoder as messageDecoder } from '../connectors/postgres/pgoutput.ts'
import { createBatcher, type Batcher } from '../src/apply/batcher.ts'
import { compileDecoder } from '../src/avro/decoder.ts'
import { valueSchema } from '../src/avro/envelope.ts'
import { createPublisher, type Publisher } from '../src/capture/publisher.ts'
import type { ChangeLog, EncodedBatch, FetchedBatch } from '../src/change-log/change-log.ts'
import { openKafkaLog } from '../src/change-log/kafka-log.ts'
import { schemasTopic, topicName } from '../src/change-log/topics.ts'
import type { Lane } from '../src/connector.ts'
import { silent } from '../src/logger.ts'
import type { Checkpoint, Position, TableSchema, TopicPartition } from '../src/model.ts'
import { Output } from '../src/output.ts'
import type { ChangeBatch, LaneBatch } from '../src/rows.ts'
import { pgSourceBed, type PgSourceBed } from '../test/support/pg-source.ts'
import { sql } from '../test/support/postgres.ts'
import { itemTable, sums, writeBacklog, type Backlog } from './item.ts'
import { measured, median } from './machine.ts'
import type { Servers } from './servers.ts'

/** CPU of Node in µs a change. */
export type Stages = {
  readonly changes: number
  readonly read: number
  readonly images: number
  readonly encode: number
  /** The same with the record batches compressed. */
  readonly encodeCompressed: number
  readonly produce: number
  readonly fetch: number
  readonly decodeAndFold: number
  /** Statements' parameters, without the socket. */
  readonly bind: number
  /** The lane: parameters, socket, answer. */
  readonly apply: number
}

const never = new AbortController().signal
const partitions = 8
const repeats = 3
const limits = { roundBytes: 4 * 2 ** 20, batchBytes: 2 ** 20 }

/** Each stage of a change's way by itself, over the same changes: what one makes is kept, unmeasured, for the next. Medians of three runs, after one
 *  that warms up. */
export async function stages({ source, target, kafka }: Servers, backlog: Backlog, name: string): Promise<Stages> {
  const changes = backlog.inserts + backlog.updates + backlog.deletes
  const each = (cpu: readonly number[]): number => median(cpu) / changes
  await using bed = await pgSourceBed(await source.createDatabase(name), itemTable)
  await using from = await bed.open()
  const [schema] = await bed.tables(from)
  if (schema === undefined) throw new Error('no table')
  const start = await bed.retain(from)
  await writeBacklog(bed.url, 0, backlog)
  const topic = topicName(name, schema.table)
  const all = Array.from({ length: partitions }, (_, partition) => ({ topic, partition }))

  const images = each(await repeated(await decodeMessages(bed, schema)))
  const batches: ChangeBatch[] = []
  const read = each(
    await repeated(async () => {
      const keep = batches.length === 0
      await using opened = await bed.open()
      await using stream = await opened.changes(start, never)
      let seen = 0
      for await (const event of stream) {
        if (event.kind !== 'changes') continue
        seen += event.count
        if (keep) batches.push(copyOf(event))
        if (seen === changes) break
      }
    }),
  )
  const publisher = (compress: boolean): Publisher =>
    createPublisher({
      pipeline: name,
      epoch: 1,
      route: (table) => ({ table, topic, partitions, pinned: false }),
      partitions: all,
      ends: all.map((at) => ({ ...at, offset: 0 })),
      clock: () => performance.now(),
      limits,
      compress,
    })
  const encode = each(await repeated(() => encodeAll(publisher(false), batches)))
  const encodeCompressed = each(await repeated(() => encodeAll(publisher(true), batches)))

  await using log = await openKafkaLog(
    { brokers: kafka.brokers, clientId: 'crossfade-bench', replication: 1 },
    silent,
    never,
  )
  await log.open(
    [
      { name: topic, partitions, cleanup: 'delete' },
      { name: schemasTopic(name), partitions: 1, cleanup: 'compact' },
    ],
    never,
  )
  const rounds: EncodedBatch[][] = []
  encodeAll(publisher(true), batches, (round) => rounds.push(round.map((b) => ({ ...b, bytes: Buffer.from(b.bytes) }))))
  const produce = each(
    await repeated(async () => {
      for (const round of rounds) await log.append(round, never)
    }),
  )
  const { fetched, cpu: fetch } = await fetchAll(log, all, rounds, repeats + 1)

  const fresh = async (): Promise<{ url: string; batcher: Batcher; lane: Lane } & AsyncDisposable> => {
    const url = await target.createDatabase(`${name}_${Math.random().toString(36).slice(2, 10)}`)
    await sql(url, itemTable)
    const sink = await openSink(parse({ url }), { pipeline: name, dir: '/nowhere', log: silent }, never)
    await sink.prepare([schema], 'before', undefined, never)
    await sink.setCopies([{ table: schema.table, partitions: all, snapshot: '' as Position, live: true }], 1, never)
    const lane = await sink.lane(never)
    return {
      url,
      lane,
      batcher: batcherOf(await lane.claim(all, 1, never), schema),
      async [Symbol.asyncDispose]() {
        await lane[Symbol.asyncDispose]()
        await sink[Symbol.asyncDispose]()
      },
    }
  }
  const foldAll = (use: (batch: LaneBatch) => void): void => {
    const batcher = batcherOf(all.map(unread), schema)
    for (const pull of fetched) {
      batcher.wanted()
      batcher.add(pull)
      for (let step = batcher.next(); step !== undefined; step = batcher.next()) {
        if (step.kind === 'batch') use(step.batch)
        batcher.lost([])
      }
    }
  }
  const [catalog] = await readCatalog(bed.client, ({ name }) => name === schema.table.name)
  if (catalog === undefined) throw new Error('no table')
  const plan = planTable(schema, catalog)
  const out = new Output(2 ** 20)
  const bindAll = ({ groups }: LaneBatch): void => {
    for (const { kind, columns, rows } of groups) appendStatement(out, plan, kind, columns, slice(rows), () => 'name')
    out.at = 0
  }
  const decodeAndFold = each(await repeated(() => foldAll(() => {})))
  const bind = each(await repeated(() => foldAll(bindAll))) - decodeAndFold
  const expected = await sums(bed.url)
  const whole: number[] = []
  for (let n = 0; n < repeats; n++) {
    await using into = await fresh()
    const { batcher, lane } = into
    const { cpu } = await measured(async () => {
      for (const pull of fetched) {
        batcher.wanted()
        batcher.add(pull)
        for (let step = batcher.next(); step !== undefined; step = batcher.next())
          if (step.kind === 'batch') batcher.lost(await lane.apply(step.batch, step.advances, never))
      }
    })
    const { gone } = batcher
    if (gone.length > 0) throw new Error(`${gone.length} partitions were lost`)
    if ((await sums(into.url)) !== expected) throw new Error('contents differ after applying')
    whole.push(cpu)
  }
  return {
    changes,
    read,
    images,
    encode,
    encodeCompressed,
    produce,
    fetch,
    decodeAndFold,
    bind,
    apply: each(whole) - decodeAndFold,
  }
}

/** CPU µs of each run; the first one warms up. */
async function repeated(work: () => Promise<void> | void): Promise<readonly number[]> {
  await work()
  const all: number[] = []
  for (let n = 0; n < repeats; n++) all.push((await measured(work)).cpu)
  return all
}

/** The output plugin's messages to images, without the connection. */
async function decodeMessages(bed: PgSourceBed, schema: TableSchema): Promise<() => void> {
  const client = new pg.Client({ connectionString: bed.url })
  await client.connect()
  const { rows } = await client.query<{ data: Buffer }>(
    `select data from pg_logical_slot_peek_binary_changes($1::name, null, null, 'proto_version', '1', 'publication_names', $2)`,
    [bed.name, bed.name],
  )
  await client.end()
  return () => {
    const queue = changeQueue()
    const decode = messageDecoder({
      queue,
      tables: { left: () => undefined, ahead: () => false, at: () => schema, passing: () => [] },
      ours: () => false,
      after: '' as Position,
    })
    for (const { data } of rows) {
      decode.decode(data, false)
      if (queue.bytes > 2 ** 20) while (queue.pull() !== undefined);
    }
  }
}

function copyOf(batch: ChangeBatch): ChangeBatch {
  const { images, count, op, table, transactions } = batch
  const rows = {
    ...images,
    bytes: Buffer.from(images.bytes),
    starts: images.starts.slice(0, 2 * count + 1),
  }
  return { ...batch, images: rows, op: op.slice(0, count), table: table.slice(0, count), transactions }
}

/** All batches into rounds; `sent` instead of a log. */
function encodeAll(
  publisher: Publisher,
  batches: readonly ChangeBatch[],
  sent: (round: readonly EncodedBatch[]) => void = () => {},
): void {
  const ends = new Map<string, number>()
  const send = (): void => {
    const { round } = publisher.take()
    sent(round)
    publisher.landed(
      round.map(({ topic, partition, count }) => {
        const name = `${topic}/${partition}`
        const offset = (ends.get(name) ?? 0) + count
        ends.set(name, offset)
        return { topic, partition, offset }
      }),
    )
  }
  for (const batch of batches) {
    publisher.add(batch)
    if (publisher.full) send()
  }
  while (!publisher.idle) send()
}

/** Reads what was produced, `times` times over, from front to back; resolves with copies of the first part that has every change, and the CPU µs of
 *  reading a change. */
async function fetchAll(
  log: ChangeLog,
  all: readonly TopicPartition[],
  rounds: readonly (readonly EncodedBatch[])[],
  times: number,
): Promise<{ readonly fetched: readonly (readonly FetchedBatch[])[]; readonly cpu: number }> {
  const once = new Map<number, number>()
  for (const { topic, partition, count } of rounds.flat())
    if (topic === all[0]?.topic) once.set(partition, (once.get(partition) ?? 0) + count)
  let records = 0
  const pass = async (parts: number, seen: (pull: readonly FetchedBatch[]) => void): Promise<void> => {
    const from = new Map(all.map((at) => [at.partition, { ...at, offset: 0 }]))
    for (records = 0; from.size > 0;) {
      const pull = await log.fetch([...from.values()], 1000, never)
      for (const batch of pull) {
        records += batch.count
        if (batch.next >= (once.get(batch.partition) ?? 0) * parts) from.delete(batch.partition)
        else from.set(batch.partition, { ...batch, offset: batch.next })
      }
      seen(pull)
    }
  }
  const fetched: FetchedBatch[][] = []
  await pass(1, (pull) => fetched.push(pull.map((batch) => ({ ...batch, bytes: Buffer.from(batch.bytes) }))))
  const { cpu } = await measured(() => pass(times, () => {}))
  return { fetched, cpu: cpu / records }
}

function batcherOf(checkpoints: readonly Checkpoint[], schema: TableSchema): Batcher {
  const decoder = compileDecoder(valueSchema(schema))
  return createBatcher({
    checkpoints,
    schemas: { decoder: () => decoder },
    limits: { batchRows: 2000, batchBytes: 4 * 2 ** 20 },
  })
}

function unread(at: TopicPartition): Checkpoint {
  const position = '' as Position
  return { ...at, offset: 0, mark: { position, seq: 0 }, captureEpoch: 0, claim: '', loose: position }
}
