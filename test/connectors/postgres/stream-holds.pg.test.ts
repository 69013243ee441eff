import assert from 'node:assert/strict'
import { suite, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { endWhenSilent, parse, replicationOptions } from '../../../connectors/postgres/config.ts'
import { lsnOf, parseLsn } from '../../../connectors/postgres/position.ts'
import type { ChangeStream } from '../../../src/connector.ts'
import { origin, type Position, heartbeatPrefix } from '../../../src/model.ts'
import { flatten } from '../../support/flatten.ts'
import { readToMessage, readUntil, streamBed, type StreamBed } from '../../support/pg-stream.ts'
import { startPostgres } from '../../support/postgres.ts'
import { startProxy } from '../../support/proxy.ts'
import { needs, postgres } from '../../support/servers.ts'

const ddl = 'create table a (id int primary key, name text)'

async function until(condition: () => Promise<boolean>, what: string, ms = 10_000): Promise<void> {
  for (const deadline = performance.now() + ms; !(await condition());) {
    if (performance.now() > deadline) throw new Error(`not within ${ms} ms: ${what}`)
    await sleep(20)
  }
}

async function isActive(bed: StreamBed, slot: string): Promise<boolean> {
  const { rows } = await bed.client.query('select active from pg_replication_slots where slot_name = $1', [slot])
  return rows[0]?.active === true
}

for (const version of [18, 14] as const) {
  const need = version === 18 ? 'pg' : 'pg14'
  suite(`acknowledging to PostgreSQL ${version}`, needs(need), () => {
    test('two adjacent commits: the acknowledged one is not sent again as new, the next one is never skipped', async () => {
      const server = await postgres(version)
      await using bed = await streamBed(await server.database('adjacent'), ddl)
      const slot = await bed.slot()
      // Records of a transaction lie before its commit: begun first, the second's commit follows directly upon the first's.
      const others = []
      for (let i = 0; i < 20; i++) {
        const client = new pg.Client({ connectionString: bed.url })
        await client.connect()
        await client.query(`begin; insert into a values (${i}, 'x')`)
        others.push(client)
      }
      await Promise.all(others.map((client) => client.query('commit')))
      for (const client of others) await client.end()
      await bed.client.query("select pg_logical_emit_message(false, 'p', 'end')")
      const seen: string[] = []
      let after: Position = origin
      // Each commit is acknowledged by a stream of its own; the next begins behind it.
      while (seen.length < 20) {
        await until(async () => !(await isActive(bed, slot)), 'the server notices that the former stream has gone')
        await using stream: ChangeStream = await bed.open(slot, { after })
        const [first] = await readUntil(stream, (all) => all.length > 0)
        assert.ok(first?.kind === 'change')
        seen.push(first.new[0] ?? '')
        after = first.position as Position
        stream.ack(after)
        await until(async () => (await bed.confirmed(slot)) === lsnOf(after), 'the slot confirms exactly that place')
      }
      assert.deepEqual(
        seen.toSorted((a, b) => Number(a) - Number(b)),
        Array.from({ length: 20 }, (_, i) => String(i)),
      )
    })

    test('an idle source: the confirmed place moves with messages alone, and never past an unacknowledged change', async () => {
      const server = await postgres(version)
      await using bed = await streamBed(await server.database('idle'), ddl)
      const slot = await bed.slot()
      const before = await bed.confirmed(slot)
      await using stream = await bed.open(slot, { statusIntervalMs: 50 })
      await bed.client.query("select pg_logical_emit_message(false, 'p', 'one')")
      const [message] = await readToMessage(stream, 'one')
      stream.ack((message?.position ?? origin) as Position)
      await until(async () => (await bed.confirmed(slot)) > before, 'the slot moves')
      const confirmed = await bed.confirmed(slot)
      await bed.client.query("insert into a values (1, 'x')")
      await bed.client.query("select pg_logical_emit_message(false, 'p', 'two')")
      await readToMessage(stream, 'two')
      await sleep(500)
      assert.equal(await bed.confirmed(slot), confirmed)
    })

    test('a consumer that does not pull keeps the connection alive, in bounded memory', async () => {
      const server = await postgres(version)
      await using bed = await streamBed(await server.database('paused'), ddl)
      const slot = await bed.slot()
      await bed.client.query("insert into a select i, repeat('x', 1000) from generate_series(1, 60000) i")
      await bed.client.query("select pg_logical_emit_message(false, 'p', 'end')")
      const client = replicationOptions(parse({ url: bed.url }), 'stream', 'test')
      const options = `${client.options} -c wal_sender_timeout=1s -c logical_decoding_work_mem=1GB`
      await using stream = await bed.open(slot, {
        client: { ...client, options },
        statusIntervalMs: 200,
        readAheadBytes: 4 << 20,
      })
      const before = process.memoryUsage().arrayBuffers
      await sleep(3_000)
      assert.ok(process.memoryUsage().arrayBuffers - before < 32 << 20)
      let rows = 0
      const iterator = stream[Symbol.asyncIterator]()
      for (let end = false; !end;) {
        const { value } = await iterator.next()
        if (value.kind === 'changes') rows += value.count
        end = value.kind === 'message'
      }
      assert.equal(rows, 60_000)
    })

    test('a large transaction stays within its memory', async () => {
      const server = await postgres(version)
      await using bed = await streamBed(await server.database('million'), ddl)
      const slot = await bed.slot()
      const rows = 200_000
      await bed.client.query(`insert into a select i, 'row number ' || i from generate_series(1, ${rows}) i`)
      await bed.client.query("select pg_logical_emit_message(false, 'p', 'end')")
      const client = replicationOptions(parse({ url: bed.url }), 'stream', 'test')
      globalThis.gc?.()
      const before = process.memoryUsage().rss
      let most = 0
      let count = 0
      await using stream = await bed.open(slot, {
        client: { ...client, options: `${client.options} -c logical_decoding_work_mem=4MB` },
      })
      const iterator = stream[Symbol.asyncIterator]()
      for (let end = false; !end;) {
        const { value } = await iterator.next()
        if (value.kind === 'changes') {
          const { transactions } = value
          assert.equal(transactions[0]?.firstSeq, 4 * count)
          count += value.count
        }
        most = Math.max(most, process.memoryUsage().rss)
        end = value.kind === 'message'
      }
      assert.equal(count, rows)
      assert.ok(most - before < 100 << 20, `${Math.round((most - before) / 2 ** 20)} MB more`)
    })

    test('a lost server ends the pull with an error that is tried again, after what was decoded', async () => {
      const server = await postgres(version)
      await using bed = await streamBed(await server.database('lost'), ddl)
      const slot = await bed.slot()
      await using stream = await bed.open(slot)
      const pulled = readUntil(stream, () => false)
      const rejected = assert.rejects(pulled, { code: 'SERVER_UNREACHABLE', policy: 'retry' })
      await bed.client.query('select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1', [
        slot,
      ])
      await rejected
    })

    test('a server that falls silent behind a network that swallows everything ends the pull', async () => {
      const server = await postgres(version)
      await using bed = await streamBed(await server.database('silent'), ddl)
      const slot = await bed.slot()
      await using proxy = await startProxy(Number(new URL(bed.url).port))
      const config = { ...parse({ url: bed.url }), port: proxy.port }
      await using stream = await bed.open(slot, {
        client: replicationOptions(config, 'stream', 'test'),
        statusIntervalMs: 100,
        watch: (client) => endWhenSilent(client, config, { always: true, silenceMs: 1_000 }),
      })
      const pulled = readUntil(stream, () => false)
      // As long as it answers, silence in the log is no silence of the server.
      assert.equal(await Promise.race([pulled.catch(() => 'ended'), sleep(2_500)]), undefined)
      proxy.pause()
      await assert.rejects(pulled, { code: 'SERVER_UNREACHABLE', message: /no answer for/ })
    })

    test('a slot that somebody reads, one that is gone, and a publication that is gone are told apart', async () => {
      const server = await postgres(version)
      await using bed = await streamBed(await server.database('gone'), ddl)
      const slot = await bed.slot()
      {
        await using first = await bed.open(slot)
        await assert.rejects(bed.open(slot), { code: 'SLOT_IN_USE' })
        void first
      }
      await assert.rejects(bed.open(`${slot}_none`, { confirmed: 0n }), { code: 'SLOT_LOST' })
      // Later versions go on and send nothing: the source's own look at the publication finds that.
      if (version > 14) return
      await bed.client.query(`drop publication ${bed.publication}`)
      await bed.client.query("insert into a values (1, 'x')")
      await until(async () => !(await isActive(bed, slot)), 'the slot is free')
      await using stream = await bed.open(slot)
      await assert.rejects(
        readUntil(stream, (all) => all.length > 0),
        { code: 'PUBLICATION_CHANGED' },
      )
    })
  })
}

suite('a source that is stopped', needs('pg', 'pg14'), () => {
  for (const version of [18, 14] as const) {
    test(`a fast stop of PostgreSQL ${version} while streaming does not hang, and loses nothing`, async () => {
      await using server = await startPostgres({ version, settings: { wal_sender_timeout: '60s' } })
      const url = await server.createDatabase('stop')
      await using bed = await streamBed(url, ddl)
      const slot = await bed.slot()
      const rows: string[] = []
      let acknowledged: Position = origin
      const stream = await bed.open(slot)
      const reading = (async () => {
        for await (const event of stream) {
          // As the core: acknowledged by messages alone, some time later.
          if (event.kind === 'message') {
            if (event.prefix !== heartbeatPrefix) continue
            acknowledged = event.position
            await sleep(30)
            stream.ack(acknowledged)
          } else for (const flat of flatten(event)) if (flat.kind === 'change') rows.push(flat.new[0] ?? '')
        }
      })()
      const ended = assert.rejects(reading, { code: 'SERVER_UNREACHABLE' })
      for (let i = 0; i < 50; i++) await bed.client.query(`insert into a values (${i}, 'x')`)
      const began = performance.now()
      await server.stop('fast')
      assert.ok(performance.now() - began < 10_000, 'within 10 s')
      await ended
      await stream[Symbol.asyncDispose]()
      assert.equal(rows.length, 50)
      await server.restart()
      const client = new pg.Client({ connectionString: url })
      await client.connect()
      const { rows: slots } = await client.query('select confirmed_flush_lsn from pg_replication_slots')
      await client.end()
      const confirmed = parseLsn(slots[0].confirmed_flush_lsn)
      assert.ok(confirmed - lsnOf(acknowledged) <= 1n, 'at most the byte behind the last acknowledged place')
    })
  }
})
