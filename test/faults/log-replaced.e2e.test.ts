import assert from 'node:assert/strict'
import { cp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { Kafka, logLevel } from 'kafkajs'
import { readPrefix } from '../../src/avro/decoder.ts'
import type { Prefix } from '../../src/avro/plan.ts'
import type { ChangeLog } from '../../src/change-log/change-log.ts'
import { openEmbeddedLog } from '../../src/change-log/embedded-log.ts'
import { openKafkaLog } from '../../src/change-log/kafka-log.ts'
import { batchBuilder } from '../../src/change-log/record-batch.ts'
import { silent } from '../../src/logger.ts'
import { logConfig } from '../support/kills.ts'
import { sql } from '../support/postgres.ts'
import { assertRefusal, createThings, scene, untilEqual, type Scene } from '../support/scene.ts'
import { kafka, needs, postgres } from '../support/servers.ts'
import { until, type Worker } from '../support/worker.ts'

const signal = AbortSignal.timeout(300_000)

async function prepared(log: string): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('replaced_source'), await pg.database('replaced_target')]
  await createThings(source, 100)
  return await scene({ source, target, mode: 'hybrid', log })
}
/** Runs until `count` more rows, in as many transactions, have gone through the log; then stops. */
async function carry(pipeline: Scene, from: number, count: number): Promise<void> {
  const worker: Worker = pipeline.run()
  await until(async () => (/ streaming /.test(worker.printed()) ? [] : ['not live yet']), { seconds: 60, worker })
  for (let i = from; i < from + count; i++) await sql(pipeline.source, `insert into thing values (${i}, 'carried')`)
  await untilEqual(pipeline, worker)
  const end = await worker.stop()
  assert.equal(end.code, 0, end.stderr)
}
const topicOf = ({ name }: Scene): string => `${name}.public.thing`
async function nextOffset({ target }: Scene): Promise<number> {
  const [row] = await sql<{ n: string }>(target, 'select next_offset as n from crossfade.checkpoint')
  return Number(row?.n)
}

/** The partition's records from the start, each as of a later place in the source: what another history of it would hold. */
async function otherHistory(log: ChangeLog, topic: string): Promise<readonly Buffer[]> {
  const prefix: Prefix = {
    schemaId: 0,
    op: 0,
    positionStart: 0,
    positionEnd: 0,
    seq: 0,
    epoch: 0,
    committedAt: 0,
    rest: 0,
  }
  const at = { topic, partition: 0 }
  const end = (await log.ends([at], signal))[0]?.offset ?? 0
  const values: Buffer[] = []
  for (let offset = 0; offset < end;) {
    for (const batch of await log.fetch([{ ...at, offset }], 1000, signal)) {
      for (let i = 0; i < batch.count; i++) {
        if (readPrefix(batch, i, prefix) !== 'change') continue
        const start = batch.bounds[4 * i + 2] ?? 0
        const value = Buffer.from(batch.bytes.subarray(start, batch.bounds[4 * i + 3]))
        value.fill('f', prefix.positionStart - start, prefix.positionEnd - start)
        values.push(value)
      }
      offset = batch.next
    }
  }
  return values
}
/** Appends until the partition holds more than `beyond` records. */
async function fill(log: ChangeLog, topic: string, values: readonly Buffer[], beyond: number): Promise<void> {
  for (let end = 0; end <= beyond;) {
    const builder = batchBuilder({ compress: false })
    for (const value of values) builder.add(value, 0, 0, 0, value.length, 0)
    end = (await log.append([builder.finish(topic, 0)], signal))[0]?.offset ?? 0
  }
}
/** LOG_DAMAGED that says so, twice, and nothing written to the target. */
async function refuses(pipeline: Scene, told: RegExp): Promise<void> {
  const rows = async (): Promise<unknown> =>
    await sql(pipeline.target, 'select count(*)::int as n, max(id) as last from thing')
  const before = [await rows(), await nextOffset(pipeline)]
  for (let turn = 0; turn < 2; turn++) {
    const refusal = await pipeline.refused()
    assertRefusal(refusal, 'LOG_DAMAGED', 1)
    assert.equal(refusal.error.object, `${topicOf(pipeline)}/0`)
    assert.match(refusal.error.observed ?? '', told)
    assert.match(refusal.error.needed ?? '', /applied/)
    assert.match(refusal.error.next ?? '', /bring back the log/)
  }
  assert.deepEqual([await rows(), await nextOffset(pipeline)], before)
}

describe('a log that was replaced under a stopped pipeline', { ...needs('pg', 'kafka'), concurrency: 2 }, () => {
  it('H23: embedded: restored from an earlier copy it ends too early, and filled up it holds other records', async (t) => {
    await using pipeline = await prepared('{ type: embedded, partitions: 1 }')
    await carry(pipeline, 1001, 5)
    const dir = join(pipeline.work.dir, '.crossfade/log', pipeline.name)
    const files = join(dir, 'topics', topicOf(pipeline))
    const kept = join(pipeline.work.dir, 'kept')
    await cp(files, kept, { recursive: true })
    await carry(pipeline, 2001, 25)
    let values: readonly Buffer[]
    {
      await using log = await openEmbeddedLog(dir, signal)
      values = (await otherHistory(log, topicOf(pipeline))).slice(-20) // of the newest capture
    }
    await rm(files, { recursive: true })
    await cp(kept, files, { recursive: true })
    const applied = await nextOffset(pipeline)
    await refuses(pipeline, new RegExp(`it ends at offset \\d+, but .* up to offset ${applied}$`))
    t.diagnostic('fault: the embedded log restored from an earlier copy; told')
    {
      await using log = await openEmbeddedLog(dir, signal)
      await fill(log, topicOf(pipeline), values, applied)
    }
    await refuses(pipeline, new RegExp(`the record at offset ${applied - 1} is of position f{16}`))
  })

  it('H23: Kafka: a topic made anew, in the place of the one recorded and filled up, is not read', async (t) => {
    await using pipeline = await prepared(await logConfig('kafka', 1))
    await carry(pipeline, 1001, 5)
    const topic = topicOf(pipeline)
    const { brokers } = await kafka()
    const admin = new Kafka({ brokers: [...brokers], logLevel: logLevel.NOTHING }).admin()
    await admin.connect()
    try {
      const open = () => openKafkaLog({ brokers, clientId: 'test', replication: 1 }, silent, signal)
      let values: readonly Buffer[]
      {
        await using log = await open()
        values = await otherHistory(log, topic)
      }
      await admin.deleteTopics({ topics: [topic] })
      await using log = await open()
      await until(
        async () =>
          await log.open([{ name: topic, partitions: 1, cleanup: 'delete' }], signal).then(
            () => [],
            (error: unknown) => [String(error)],
          ),
        { seconds: 30 },
      )
      // A broker restored from a backup keeps the id: so it looks to us.
      const id = (await log.topicIds([topic], signal)).get(topic)
      const [state] = await sql<{ value: object }>(
        pipeline.target,
        `select value from crossfade.state where key = 'topic-ids'`,
      )
      const ids = JSON.stringify({ ...state?.value, [topic]: id })
      await sql(pipeline.target, `update crossfade.state set value = $1 where key = 'topic-ids'`, [ids])
      const applied = await nextOffset(pipeline)
      await refuses(pipeline, new RegExp(`it ends at offset \\d+, but .* up to offset ${applied}$`))
      t.diagnostic('fault: a topic made anew in the place of the one recorded; told')
      await fill(log, topic, values, applied)
      t.diagnostic('fault: that topic filled with other records')
      await refuses(pipeline, new RegExp(`the record at offset ${applied - 1} is of position f{16}`))
    } finally {
      await admin.disconnect()
    }
  })

  it('retention that has taken the record before is no failure', async (t) => {
    await using pipeline = await prepared(await logConfig('kafka', 1))
    await carry(pipeline, 1001, 5)
    const topic = topicOf(pipeline)
    const admin = new Kafka({ brokers: [...(await kafka()).brokers], logLevel: logLevel.NOTHING }).admin()
    await admin.connect()
    try {
      await admin.fetchTopicOffsets(topic)
      await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '-1' }] })
      t.diagnostic('fault: every record before the end removed')
    } finally {
      await admin.disconnect()
    }
    await carry(pipeline, 2001, 3)
  })
})
