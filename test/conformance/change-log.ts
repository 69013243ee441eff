import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { ChangeLog, EncodedBatch, FetchedBatch, Topic } from '../../src/change-log/change-log.ts'
import { batchBuilder, release } from '../../src/change-log/record-batch.ts'
import { Failure } from '../../src/errors.ts'
import { partitionName, type Offset, type TopicPartition } from '../../src/model.ts'

/** What an implementation gives the suite. */
interface ChangeLogUnderTest {
  /** Opens the same log again after the former was disposed of; side by side only where `sideBySide`. */
  open(): Promise<ChangeLog>
  /** A fresh topic name. */
  topic(): string
  /** Removes records below an offset, as retention does; absent where that cannot be done on demand. */
  truncate?(log: ChangeLog, at: TopicPartition, offset: number): Promise<void>
}

const never = new AbortController().signal

/** One record batch of texts; every value is its own key. */
export function batchOf(
  at: TopicPartition,
  values: readonly string[],
  compress = false,
  messageBytes?: number,
): EncodedBatch {
  const builder = batchBuilder({ compress, messageBytes })
  for (const value of values) {
    const bytes = Buffer.from(value)
    builder.add(bytes, 0, bytes.length, 0, bytes.length, Date.now())
  }
  return builder.finish(at.topic, at.partition)
}

/** The values of what was fetched, copied. */
export function valuesOf(batch: FetchedBatch): string[] {
  return Array.from({ length: batch.count }, (_, i) =>
    Buffer.from(batch.bytes.subarray(batch.bounds[i * 4 + 2], batch.bounds[i * 4 + 3])).toString(),
  )
}

/** Reads a partition from `offset` until its present end. */
export async function readAll(log: ChangeLog, at: TopicPartition, offset = 0): Promise<string[]> {
  const [until] = await log.ends([at], never)
  const all: string[] = []
  for (let next = offset; next < (until?.offset ?? 0);) {
    for (const batch of await log.fetch([{ ...at, offset: next }], 1000, never)) {
      all.push(...valuesOf(batch))
      next = batch.next
    }
  }
  return all
}

const code = (wanted: string) => (error: unknown) => error instanceof Failure && error.code === wanted

/** The contract of `ChangeLog`, called by every implementation. */
export function changeLogConformance(
  name: string,
  under: ChangeLogUnderTest,
  options: { skip?: string | false } = {},
): void {
  const topicOf = (partitions = 3): Topic => ({ name: under.topic(), partitions, cleanup: 'delete' })
  const at = (topic: Topic, partition = 0): TopicPartition => ({ topic: topic.name, partition })
  const append = async (log: ChangeLog, ...round: EncodedBatch[]): Promise<readonly Offset[]> => {
    const ends = await log.append(round, never)
    round.forEach(release)
    return ends
  }

  describe(`${name}: change log`, { skip: options.skip ?? false }, () => {
    test('keeps order and tells offsets', async () => {
      await using log = await under.open()
      const topic = topicOf()
      await log.open([topic], never)
      assert.deepEqual(await append(log, batchOf(at(topic), ['a', 'b']), batchOf(at(topic, 2), ['x'])), [
        { ...at(topic), offset: 2 },
        { ...at(topic, 2), offset: 1 },
      ])
      assert.deepEqual(await append(log, batchOf(at(topic), ['c'])), [{ ...at(topic), offset: 3 }])
      const long = Array.from({ length: 3000 }, (_, i) => `value-${i}`)
      await append(log, batchOf(at(topic), long, true))
      assert.deepEqual(await readAll(log, at(topic)), ['a', 'b', 'c', ...long])
      assert.deepEqual(await readAll(log, at(topic), 1), ['b', 'c', ...long])
      assert.deepEqual(await readAll(log, at(topic, 2)), ['x'])
      assert.deepEqual(
        (await log.ends([at(topic, 1), at(topic)], never)).map((each) => each.offset),
        [0, 3003],
      )
    })

    test('one pull brings several partitions, with their offsets, next and end', async () => {
      await using log = await under.open()
      const topic = topicOf()
      await log.open([topic], never)
      await append(log, batchOf(at(topic), ['a', 'b']), batchOf(at(topic, 1), ['x']))
      const want = [
        { ...at(topic), offset: 1 },
        { ...at(topic, 1), offset: 0 },
        { ...at(topic, 2), offset: 0 },
      ]
      const seen = new Map<string, FetchedBatch>()
      while (seen.size < 2) {
        const left = want.filter((each) => !seen.has(partitionName(each)))
        for (const batch of await log.fetch(left, 1000, never)) seen.set(partitionName(batch), batch)
      }
      const first = seen.get(partitionName(at(topic)))
      assert.ok(first)
      assert.deepEqual([first.count, first.offsets[0], first.next, first.end], [1, 1, 2, 2])
      assert.ok(!seen.has(partitionName(at(topic, 2))))
    })

    test('null keys, null values and control records', async () => {
      await using log = await under.open()
      const topic = topicOf(1)
      await log.open([topic], never)
      const builder = batchBuilder({ compress: false })
      builder.add(Buffer.from('kv'), -1, -1, 1, 2, 0)
      builder.add(Buffer.from('kv'), 0, 1, -1, -1, 0)
      builder.addControl('watermark', Buffer.from('id'), Buffer.from('body'), 0)
      await append(log, builder.finish(topic.name, 0))
      const [batch] = await log.fetch([{ ...at(topic), offset: 0 }], 1000, never)
      assert.ok(batch)
      const bounds = [...batch.bounds.subarray(0, batch.count * 4)]
      assert.deepEqual(bounds.slice(0, 2), [-1, -1])
      assert.deepEqual(bounds.slice(6, 8), [-1, -1])
      assert.equal(Buffer.from(batch.bytes.subarray(bounds[10], bounds[11])).toString(), 'body')
    })

    test('a fetch waits for data, and no longer than asked', async () => {
      await using log = await under.open()
      const topic = topicOf()
      await log.open([topic], never)
      const began = performance.now()
      assert.deepEqual(await log.fetch([{ ...at(topic), offset: 0 }], 150, never), [])
      assert.deepEqual(await log.fetch([], 150, never), [])
      assert.ok(performance.now() - began > 250)
      const pending = log.fetch([{ ...at(topic), offset: 0 }], 20_000, never)
      await append(log, batchOf(at(topic), ['a']))
      assert.deepEqual((await pending).flatMap(valuesOf), ['a'])
      assert.ok(performance.now() - began < 10_000)
    })

    test('a waiting fetch holds up neither other fetches nor appends', async () => {
      await using log = await under.open()
      const topic = topicOf()
      await log.open([topic], never)
      const idle = new AbortController()
      const waiting = [0, 1, 2].map(() => log.fetch([{ ...at(topic, 1), offset: 0 }], 60_000, idle.signal))
      for (const each of waiting) each.catch(() => {})
      await log.fetch([{ ...at(topic), offset: 0 }], 50, never)
      const began = performance.now()
      for (let i = 0; i < 5; i++) {
        await append(log, batchOf(at(topic), [`v${i}`]))
        const pulled = await log.fetch([{ ...at(topic), offset: i }], 10_000, never)
        assert.deepEqual(pulled.flatMap(valuesOf), [`v${i}`])
      }
      assert.ok(performance.now() - began < 5_000)
      idle.abort(new Error('enough'))
      for (const each of waiting) await assert.rejects(each, /enough/)
    })

    test('an offset that is not in the log is a gap, above and below', async () => {
      await using log = await under.open()
      const topic = topicOf(1)
      await log.open([topic], never)
      await append(log, batchOf(at(topic), ['a', 'b']))
      await append(log, batchOf(at(topic), ['c']))
      await assert.rejects(log.fetch([{ ...at(topic), offset: 4 }], 1000, never), code('LOG_GAP'))
      assert.deepEqual(await log.fetch([{ ...at(topic), offset: 3 }], 10, never), [])
      assert.deepEqual(await log.lows([at(topic)], never), [{ ...at(topic), offset: 0 }])
      if (under.truncate === undefined) return
      await under.truncate(log, at(topic), 2)
      await assert.rejects(log.fetch([{ ...at(topic), offset: 1 }], 1000, never), code('LOG_GAP'))
      assert.deepEqual(await readAll(log, at(topic), 2), ['c'])
      assert.deepEqual(await log.lows([at(topic)], never), [{ ...at(topic), offset: 2 }])
      await under.truncate(log, at(topic), 3)
      assert.deepEqual(await log.lows([at(topic)], never), [{ ...at(topic), offset: 3 }])
    })

    test('opened again it has everything, and the next offset follows', async () => {
      const topic = topicOf()
      {
        await using log = await under.open()
        await log.open([topic], never)
        await append(log, batchOf(at(topic), ['a', 'b']))
      }
      for (const value of ['c', 'd']) {
        await using log = await under.open()
        await log.open([topic], never)
        await append(log, batchOf(at(topic), [value]))
      }
      await using log = await under.open()
      assert.deepEqual(await readAll(log, at(topic)), ['a', 'b', 'c', 'd'])
    })

    test('a topic is itself, with its partitions, settings and id', async () => {
      await using log = await under.open()
      const topic = topicOf()
      const compact: Topic = { name: under.topic(), partitions: 1, cleanup: 'compact' }
      await log.open([topic, compact], never)
      await log.open([topic, compact], never)
      const id = (await log.topicIds([topic.name, 'missing'], never)).get(topic.name)
      assert.ok(id)
      assert.equal((await log.topicIds([topic.name, 'missing'], never)).size, 1)
      await log.open([{ ...topic, id }], never)
      for (const other of [
        { ...topic, partitions: 4 },
        { ...topic, partitions: 2 },
        { ...topic, cleanup: 'compact' as const },
        { ...topic, id: 'AAAAAAAAAAAAAAAAAAAAAA' },
        { ...compact, cleanup: 'delete' as const },
      ]) {
        await assert.rejects(log.open([other], never), code('TOPIC_MISMATCH'), JSON.stringify(other))
      }
    })

    test('many partitions in one round', async () => {
      await using log = await under.open()
      const topic = topicOf(40)
      await log.open([topic], never)
      for (let turn = 0; turn < 3; turn++) {
        await append(log, ...Array.from({ length: 40 }, (_, i) => batchOf(at(topic, i), [`${turn}-${i}`])))
      }
      for (const i of [0, 17, 39]) {
        assert.deepEqual(await readAll(log, at(topic, i)), [`0-${i}`, `1-${i}`, `2-${i}`])
      }
    })

    test('large records and long partitions', async () => {
      await using log = await under.open()
      const topic = topicOf(1)
      await log.open([topic], never)
      const large = 'x'.repeat(3 * 1024 * 1024)
      const filler = 'y'.repeat(700_000)
      await append(log, batchOf(at(topic), [large]))
      for (let i = 0; i < 4; i++) await append(log, batchOf(at(topic), [`${i}${filler}`]))
      const all = await readAll(log, at(topic))
      assert.deepEqual(
        all.map((each) => each.length),
        [large.length, ...[0, 1, 2, 3].map(() => filler.length + 1)],
      )
    })

    test('what is aborted before it began is not done', async () => {
      await using log = await under.open()
      const topic = topicOf(1)
      await log.open([topic], never)
      const gone = AbortSignal.abort(new Error('stop'))
      await assert.rejects(log.append([batchOf(at(topic), ['a'])], gone), /stop/)
      await assert.rejects(log.fetch([{ ...at(topic), offset: 0 }], 1000, gone), /stop/)
      await assert.rejects(log.ends([at(topic)], gone), /stop/)
      await assert.rejects(log.lows([at(topic)], gone), /stop/)
      await assert.rejects(log.open([topic], gone), /stop/)
      assert.equal((await log.ends([at(topic)], never))[0]?.offset, 0)
    })

    test('an empty round is done at once', async () => {
      await using log = await under.open()
      assert.deepEqual(await log.append([], never), [])
      assert.deepEqual(await log.ends([], never), [])
      assert.deepEqual(await log.lows([], never), [])
    })
  })
}
