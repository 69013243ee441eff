import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { suite, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { Source } from '../../../src/connector.ts'
import { freeSlot } from '../../../connectors/postgres/slots.ts'
import { Failure } from '../../../src/errors.ts'
import { tableName, type Position, heartbeatPrefix } from '../../../src/model.ts'
import { readToMessage, readUntil } from '../../support/pg-stream.ts'
import { pgSourceBed, type PgSourceBed } from '../../support/pg-source.ts'
import { startPostgres } from '../../support/postgres.ts'
import { needs, postgres } from '../../support/servers.ts'

const never = new AbortController().signal
const ddl = 'create table a (id int primary key, name text); create table b (id int primary key, n int)'

async function other(bed: PgSourceBed): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: bed.url, application_name: 'somebody' })
  client.on('error', () => {})
  await client.connect()
  return client
}
/** Calls `health` until its look at publication and tables, once a second, rejects. */
async function noticed(source: Source): Promise<unknown> {
  for (const deadline = performance.now() + 10_000; performance.now() < deadline;) {
    try {
      await source.health(never)
    } catch (error) {
      return error
    }
    await sleep(100)
  }
  throw new Error('nothing was noticed')
}
async function codeOf(error: Promise<unknown>): Promise<string> {
  const found = await error
  return found instanceof Error && 'code' in found ? String(found.code) : String(found)
}

for (const version of [18, 14] as const) {
  const need = version === 18 ? 'pg' : 'pg14'
  suite(`what others do to a source on PostgreSQL ${version}`, needs(need), () => {
    const bedOf = async (more = ''): Promise<PgSourceBed> =>
      pgSourceBed(await (await postgres(version)).database('faults'), `${ddl}; ${more}`)

    test('an open transaction that holds the new slot up is named, and nothing is left', async () => {
      await using bed = await bedOf()
      const blocker = await other(bed)
      await blocker.query("begin; insert into a values (1, 'x')")
      await using source = await bed.open({ snapshotLimitMs: 1_000 })
      await assert.rejects(bed.retain(source), (error: Error & { code: string }) => {
        assert.equal(error.code, 'SNAPSHOT_BLOCKED')
        assert.match(error.message, /pid \d+ \(postgres, somebody, idle in transaction/)
        return true
      })
      const { rows } = await bed.client.query(
        'select slot_name from pg_replication_slots where database = current_database() union all select pubname from pg_publication',
      )
      assert.deepEqual(rows, [])
      await assert.rejects(source.snapshot(never), { code: 'SNAPSHOT_BLOCKED' })
      await blocker.query('commit')
      await blocker.end()
      await bed.retain(source)
    })

    test('H31: a prepared transaction that holds the new slot up is named, and nothing is left', async () => {
      await using bed = await bedOf()
      const gid = `held ${bed.pipeline}`
      await bed.client.query(`begin; insert into a values (1, 'x'); prepare transaction '${gid}'`)
      await using source = await bed.open({ snapshotLimitMs: 500 })
      await assert.rejects(bed.retain(source), (error: Error & { code: string }) => {
        assert.equal(error.code, 'SNAPSHOT_BLOCKED')
        assert.match(error.message, new RegExp(`prepared transaction '${gid}' of postgres`))
        return true
      })
      const { rows } = await bed.client.query(
        'select slot_name from pg_replication_slots where database = current_database() union all select pubname from pg_publication',
      )
      assert.deepEqual(rows, [])
      await bed.client.query(`commit prepared '${gid}'`)
      await bed.retain(source)
    })

    test('a slot of this name that somebody else made is not touched', async () => {
      await using bed = await bedOf()
      await bed.client.query(`select pg_create_logical_replication_slot('${bed.name}', 'pgoutput')`)
      await using source = await bed.open()
      await assert.rejects(bed.retain(source), { code: 'SLOT_IN_USE' })
    })

    test('what a crash in the middle of the first retain left is made again', async () => {
      await using bed = await bedOf()
      {
        await using source = await bed.open()
        await bed.retain(source)
      }
      const stored = await bed.state.get('source/retained', never)
      assert.ok(stored && typeof stored.value === 'object')
      await bed.state.put('source/retained', { ...stored.value, state: 'making' }, stored.revision, never)
      await using again = await bed.open()
      await bed.retain(again)
    })

    test('a stranger who reads our slot is SLOT_IN_USE and lives on', async () => {
      await using bed = await bedOf()
      await using source = await bed.open()
      const after = await bed.retain(source)
      const stranger = new pg.Client({
        connectionString: `${bed.url}?replication=database`,
        application_name: 'stranger',
      })
      stranger.on('error', () => {})
      await stranger.connect()
      const reading = stranger
        .query(`START_REPLICATION SLOT "${bed.name}" LOGICAL 0/0 (proto_version '1', publication_names '${bed.name}')`)
        .catch(() => {})
      await untilActive(bed)
      await assert.rejects(source.changes(after, never), { code: 'SLOT_IN_USE', message: /stranger/ })
      await stranger.end()
      await reading
    })

    test('a sender of a former worker that takes its time to end is tried again, not taken for a stranger', async () => {
      await using bed = await bedOf()
      await using former = await bed.open()
      const after = await bed.retain(former)
      await using stream = await former.changes(after, never)
      await untilActive(bed)
      const pid = await activePid(bed)
      process.kill(pid, 'SIGSTOP')
      try {
        const freed = freeSlot(bed.client, bed.pipeline, bed.name, performance.now() + 200, never)
        await assert.rejects(freed, { code: 'SERVER_BUSY', policy: 'retry', message: new RegExp(`pid ${pid}`) })
      } finally {
        process.kill(pid, 'SIGCONT')
      }
      await freeSlot(bed.client, bed.pipeline, bed.name, performance.now() + 10_000, never)
      assert.equal(await activePid(bed), 0)
      assert.ok(stream)
    })

    test('a slot that is gone is SLOT_LOST', async () => {
      await using bed = await bedOf()
      await using source = await bed.open()
      const after = await bed.retain(source)
      await bed.client.query(`select pg_drop_replication_slot('${bed.name}')`)
      await assert.rejects(source.changes(after, never), { code: 'SLOT_LOST' })
      await assert.rejects(source.health(never), { code: 'SLOT_LOST' })
    })

    test('a slot acknowledged beyond what is known, and a log that ends before, are SOURCE_DIVERGED', async () => {
      await using bed = await bedOf()
      await using source = await bed.open()
      const after = await bed.retain(source)
      const far = 'ffffffff00000000' as Position
      await assert.rejects(source.changes(far, never), { code: 'SOURCE_DIVERGED' })
      await bed.client.query("insert into a values (1, 'x')")
      await bed.client.query(`select pg_replication_slot_advance('${bed.name}', pg_current_wal_lsn())`)
      await assert.rejects(source.changes(after, never), { code: 'SOURCE_DIVERGED' })
    })

    test('another system with the same content is SOURCE_DIVERGED', async () => {
      await using bed = await bedOf()
      await using source = await bed.open()
      const after = await bed.retain(source)
      const stored = await bed.state.get('source/retained', never)
      assert.ok(stored && typeof stored.value === 'object')
      await bed.state.put('source/retained', { ...stored.value, systemId: '42' }, stored.revision, never)
      await assert.rejects(source.changes(after, never), { code: 'SOURCE_DIVERGED' })
    })

    for (const [what, sql] of [
      ['dropped', (name: string) => `drop publication ${name}`],
      ['made again', (name: string) => `drop publication ${name}; create publication ${name} for table only a, only b`],
      ['relieved of a table', (name: string) => `alter publication ${name} drop table only b`],
      ['given another table', (name: string) => `create table c (id int); alter publication ${name} add table c`],
      ['told to leave deletes out', (name: string) => `alter publication ${name} set (publish = 'insert, update')`],
      [
        'told so and told to send them again',
        (name: string) =>
          `alter publication ${name} set (publish = 'insert, update');
           alter publication ${name} set (publish = 'insert, update, delete, truncate')`,
      ],
      [
        'relieved of a table and given it back',
        (name: string) => `alter publication ${name} drop table only b; alter publication ${name} add table only b`,
      ],
    ] as const) {
      test(`a publication that is ${what} is noticed within a second or two`, async () => {
        await using bed = await bedOf()
        await using source = await bed.open()
        await bed.retain(source)
        await source.health(never)
        await bed.client.query(sql(bed.name))
        assert.equal(await codeOf(noticed(source)), 'PUBLICATION_CHANGED')
      })
    }

    test('a table that was dropped is named, with the way on', async () => {
      await using bed = await bedOf()
      await using source = await bed.open()
      const after = await bed.retain(source)
      await bed.client.query('drop table b; create table b (id int primary key)')
      const error = await noticed(source)
      assert.ok(error instanceof Failure)
      assert.deepEqual([error.code, error.facts.object], ['TABLE_MISSING', 'public.b'])
      assert.match(error.facts.next ?? '', /tables\.exclude/)
      await using again = await bed.open()
      await assert.rejects(again.retain(await bed.tables(again), never), { code: 'TABLE_MISSING' })
      const kept = (await bed.tables(again)).filter(({ table }) => table.name === 'a')
      assert.equal(await again.retain(kept, never), undefined)
      assert.equal(await again.retain(await bed.tables(again), never), undefined)
      await (await again.changes(after, never))[Symbol.asyncDispose]()
    })

    for (const [what, sql] of [
      [
        'dropping and adding a column of the same name',
        "alter table a drop name; alter table a add name text default 'd'",
      ],
      ['renaming', 'alter table a rename to z'],
      ['another type of a key column', 'alter table b alter id type text'],
      ['another key', 'alter table b drop constraint b_pkey, add primary key (n)'],
      ['a rewrite of values in place', 'alter table b alter n type int using n + 1'],
      ['another replica identity', 'alter table b replica identity full'],
    ] as const) {
      test(`a table changed by ${what} is noticed`, async () => {
        await using bed = await bedOf()
        await using source = await bed.open()
        const after = await bed.retain(source)
        await source.health(never)
        await bed.client.query(sql)
        assert.equal(await codeOf(noticed(source)), 'TABLE_CHANGED')
        await using again = await bed.open()
        await assert.rejects(again.changes(after, never), { code: 'TABLE_CHANGED' })
      })
    }

    test('a swap of two tables by renaming stops the stream at the first row', async () => {
      await using bed = await bedOf('create table c (id int primary key, n int)')
      await using source = await bed.open()
      const after = await bed.retain(source)
      await using stream = await source.changes(after, never)
      await bed.client.query(
        'begin; alter table b rename to x; alter table c rename to b; alter table x rename to c; commit',
      )
      await bed.client.query('insert into b values (1, 1)')
      await assert.rejects(
        readUntil(stream, (all) => all.length > 0),
        { code: 'TABLE_CHANGED' },
      )
    })

    test('what changes no row passes: truncate, vacuum full, a setting, a constraint', async () => {
      await using bed = await bedOf()
      await using source = await bed.open()
      const after = await bed.retain(source)
      await source.health(never)
      for (const sql of ['truncate a', 'vacuum full b', 'alter table a alter name set statistics 7', 'analyze']) {
        await bed.client.query(sql)
        await sleep(1_100)
        await source.emit(heartbeatPrefix, Buffer.from(sql), never)
      }
      await using again = await bed.open()
      await using stream = await again.changes(after, never)
      await readToMessage(stream, 'analyze')
    })

    test('a message read late tells when it was written, not when it was read', async () => {
      await using bed = await bedOf()
      await using source = await bed.open()
      const after = await bed.retain(source)
      const before = Date.now()
      await source.emit(heartbeatPrefix, Buffer.from('late'), never)
      const written = Date.now()
      await sleep(1_500)
      await using stream = await source.changes(after, never)
      for await (const event of stream) {
        if (event.kind !== 'message' || Buffer.from(event.content).toString() !== 'late') continue
        assert.ok(
          event.committedAt >= before - 1 && event.committedAt <= written + 1,
          `${event.committedAt - before} ms`,
        )
        break
      }
    })

    test('tables added later, partitions by their roots, and counters', async () => {
      await using bed = await bedOf(`
        create table p (id bigserial, at date not null, primary key (id, at)) partition by range (at);
        create table p1 partition of p for values from ('2020-01-01') to ('2021-01-01');
        create table s (id int generated always as identity (start 100 increment 10) primary key)`)
      await using source = await bed.open()
      const all = await bed.tables(source)
      assert.deepEqual(
        all.map(({ table }) => tableName(table)),
        ['public.a', 'public.b', 'public.p1', 'public.s'],
      )
      const [first, ...rest] = all
      assert.ok(first)
      const snapshot = await source.retain([first], never)
      await snapshot?.[Symbol.asyncDispose]()
      assert.equal(await source.retain([first, ...rest], never), undefined)
      await source.health(never)
      await bed.client.query("insert into p (at) values ('2020-05-05'), ('2020-05-06'); insert into s default values")
      const counters = await source.counters?.(({ schema }) => schema === 'public', never)
      assert.deepEqual(counters, [
        { name: '"public"."p_id_seq"', value: 3n },
        { name: '"public"."s_id_seq"', value: 110n },
      ])
      await source.emit(heartbeatPrefix, Buffer.from('end'), never)
      {
        await using stream = await source.changes(snapshot?.position ?? ('' as Position), never)
        const changes = (await readToMessage(stream, 'end')).filter((flat) => flat.kind === 'change')
        assert.deepEqual(
          changes.map(({ table }) => table),
          ['public.p1', 'public.p1', 'public.s'],
        )
      }
      await bed.client.query("create table p2 partition of p for values from ('2021-01-01') to ('2022-01-01')")
      assert.equal(await codeOf(noticed(source)), 'TABLE_CHANGED')
    })

    test('no room for transactions in progress is SPOOL_FULL, and goes on once there is', async () => {
      await using bed = await bedOf()
      await bed.client.query(
        `alter role current_user in database ${new URL(bed.url).pathname.slice(1)} set logical_decoding_work_mem = '64kB'`,
      )
      const small = { spool: { memoryBytes: 10_000, diskBytes: 20_000 } }
      let after: Position
      {
        await using source = await bed.open(small)
        after = await bed.retain(source)
        await bed.client.query("insert into a select i, repeat('x', 100) from generate_series(1, 5000) i")
        await source.emit(heartbeatPrefix, Buffer.from('end'), never)
        await using stream = await source.changes(after, never)
        await assert.rejects(
          readUntil(stream, () => false),
          { code: 'SPOOL_FULL', policy: 'retry' },
        )
      }
      await using roomy = await bed.open()
      await using stream = await roomy.changes(after, never)
      assert.equal((await readToMessage(stream, 'end')).length, 5001)
    })
  })
}

async function untilActive(bed: PgSourceBed): Promise<void> {
  for (const deadline = performance.now() + 5_000; performance.now() < deadline; await sleep(20))
    if ((await activePid(bed)) !== 0) return
  throw new Error('nobody reads the slot')
}

/** 0: nobody. */
async function activePid({ client, name }: PgSourceBed): Promise<number> {
  const { rows } = await client.query('select active_pid from pg_replication_slots where slot_name = $1', [name])
  return Number(rows[0]?.active_pid ?? 0)
}

/** Of the session that is asked: the server's settings reach each at a time of its own. */
const waitsForNobody = `select where current_setting('synchronous_standby_names') = 'nobody'`

async function untilRow(client: pg.Client, query: string): Promise<pg.QueryResult> {
  for (const deadline = performance.now() + 10_000; performance.now() < deadline; await sleep(20)) {
    const result = await client.query(query)
    if (result.rows.length > 0) return result
  }
  throw new Error(`no row: ${query}`)
}

/** A commit that waits for a standby: until the server's checkpointer knows the new setting too, none does. */
async function stall(client: pg.Client): Promise<{ readonly id: string; readonly stalled: Promise<unknown> }> {
  for (let n = 1; ; n++) {
    const stalled = client.query(`insert into a values (${n}, 'x')`)
    if ((await Promise.race([stalled, sleep(1000, 'waits')])) === 'waits') return { id: String(n), stalled }
  }
}

suite('a server of its own', needs('pg'), () => {
  test('a commit that waits for a standby is streamed before it is visible', async () => {
    await using server = await startPostgres()
    const url = await server.createDatabase('visible')
    await using bed = await pgSourceBed(url, ddl)
    await using source = await bed.open()
    const after = await bed.retain(source)
    await using stream = await source.changes(after, never)
    const admin = await other(bed)
    await admin.query("alter system set synchronous_standby_names = 'nobody'")
    await admin.query('select pg_reload_conf()')
    const writer = await other(bed)
    await untilRow(writer, waitsForNobody)
    const { id, stalled } = await stall(writer)
    const all = await readUntil(stream, (all) => all.some((one) => one.kind === 'change' && one.new[0] === id))
    const change = all.at(-1)
    assert.ok(change?.kind === 'change')
    const seen = source.visible(never).then(() => 'visible' as const)
    assert.equal(await Promise.race([seen, sleep(500)]), undefined)
    await admin.query("alter system set synchronous_standby_names = ''")
    await admin.query('select pg_reload_conf()')
    await stalled
    assert.equal(await seen, 'visible')
    await writer.end()
    await admin.end()
  })

  test('H34: a heartbeat stands outside of transactions, and waits for no standby', async () => {
    await using server = await startPostgres()
    await using bed = await pgSourceBed(await server.createDatabase('heartbeat'), ddl)
    await using source = await bed.open()
    await bed.retain(source)
    await bed.client.query(`select pg_create_logical_replication_slot('watched', 'pgoutput')`)
    await bed.client.query("alter system set synchronous_standby_names = 'nobody'")
    await bed.client.query('select pg_reload_conf()')
    await untilRow(bed.client, waitsForNobody)
    const { stalled } = await stall(bed.client)
    const client = await other(bed)
    await untilRow(client, `select from pg_stat_activity where wait_event = 'SyncRep'`)
    const emitted = source.emit(heartbeatPrefix, Buffer.from('beat'), never).then(() => 'emitted' as const)
    assert.equal(await Promise.race([emitted, sleep(5_000)]), 'emitted')
    const peek = `select get_byte(data, 1) as flags from pg_logical_slot_peek_binary_changes('watched', null, null,
       'proto_version', '1', 'publication_names', '${bed.name}', 'messages', 'true') where get_byte(data, 0) = 77`
    assert.deepEqual((await untilRow(client, peek)).rows, [{ flags: 0 }])
    await client.query("alter system set synchronous_standby_names = ''")
    await client.query('select pg_reload_conf()')
    await stalled
    await client.query(`select pg_drop_replication_slot('watched')`)
    await client.end()
  })

  test('a new timeline is followed where it left the old one behind all that was published, and only there', async () => {
    await using server = await startPostgres()
    await using bed = await pgSourceBed(await server.createDatabase('timeline'), ddl)
    let after: Position
    {
      await using source = await bed.open()
      after = await bed.retain(source)
    }
    await server.stop()
    await writeFile(join(server.dataDir, 'standby.signal'), '')
    await server.restart()
    const client = await other(bed)
    {
      await using source = await bed.open()
      await assert.rejects(source.changes(after, never), { code: 'SERVER_UNREACHABLE', message: /recovery/ })
    }
    await client.query('select pg_promote()')
    await client.query("insert into a values (1, 'x')")
    {
      await using source = await bed.open()
      const { position } = await source.health(never)
      await assert.rejects(source.changes(position, never), { code: 'SOURCE_DIVERGED', message: /timeline 2/ })
      {
        await using stream = await source.changes(after, never)
        await assert.rejects(async () => await stream.demandHeld?.(position), {
          code: 'SOURCE_DIVERGED',
          message: /timeline 2/,
        })
      }
      // Asked in vain, it is not followed.
      await assert.rejects(source.changes(position, never), { code: 'SOURCE_DIVERGED', message: /timeline 2/ })
      await using stream = await source.changes(after, never)
      await stream.demandHeld?.(after)
      const [change] = await readUntil(stream, (all) => all.length > 0)
      assert.ok(change?.kind === 'change')
      after = change.position as Position
    }
    // Followed once: what lies on the new timeline counts from now on.
    await using source = await bed.open()
    await using stream = await source.changes(after, never)
    await stream.demandHeld?.(after)
    await assert.rejects(async () => await stream.demandHeld?.('ffffffff00000000' as Position), {
      code: 'SOURCE_DIVERGED',
      message: /ends at/,
    })
    await client.query("insert into a values (2, 'x')")
    assert.equal((await readUntil(stream, (all) => all.length > 0)).length, 1)
    await client.end()
  })

  test('a slot that fell too far behind is SLOT_LOST', async () => {
    await using server = await startPostgres({
      settings: { max_slot_wal_keep_size: '1MB', max_wal_size: '32MB', min_wal_size: '32MB' },
    })
    await using bed = await pgSourceBed(await server.createDatabase('lost'), ddl)
    await using source = await bed.open()
    const after = await bed.retain(source)
    for (let i = 0; i < 4; i++)
      await bed.client.query('select pg_switch_wal(), pg_logical_emit_message(false, $1, $2)', ['x', 'y'])
    await bed.client.query('checkpoint')
    await assert.rejects(source.changes(after, never), { code: 'SLOT_LOST' })
  })

  test('one that is restarted is streamed on by a source opened anew', async () => {
    await using server = await startPostgres()
    await using bed = await pgSourceBed(await server.createDatabase('restart'), ddl)
    let after: Position
    {
      await using source = await bed.open()
      after = await bed.retain(source)
      await bed.client.query("insert into a values (1, 'x')")
      await using stream = await source.changes(after, never)
      const [change] = await readUntil(stream, (all) => all.length > 0)
      after = (change?.position ?? after) as Position
      const ended = assert.rejects(
        readUntil(stream, () => false),
        { code: 'SERVER_UNREACHABLE' },
      )
      await server.kill9()
      await ended
      await assert.rejects(source.health(never), { policy: 'retry' })
    }
    await assert.rejects(bed.open(), { code: 'SERVER_UNREACHABLE' })
    await server.restart()
    await using source = await bed.open()
    const client = await other(bed)
    await client.query("insert into a values (2, 'x')")
    await using stream = await source.changes(after, never)
    const [next] = await readUntil(stream, (all) => all.length > 0)
    assert.ok(next?.kind === 'change')
    assert.equal(next.new[0], '2')
    await client.end()
  })
})
