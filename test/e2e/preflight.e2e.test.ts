import assert from 'node:assert/strict'
import { appendFile, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import pg from 'pg'
import { uniqueName } from '../support/kills.ts'
import { sql, startPostgres, type PostgresServer } from '../support/postgres.ts'
import {
  assertCompletes,
  assertRefusal,
  blocker,
  configure,
  createThings,
  follow,
  leftAtSource,
  scene,
  secret,
  untilEqual,
  type Scene,
} from '../support/scene.ts'
import { needs } from '../support/servers.ts'

/** Servers of our own: settings are changed here. Sources and targets stand side by side on it. */
describe('a start that cannot succeed', { ...needs('pg'), concurrency: 3 }, () => {
  let server: PostgresServer
  before(async () => {
    server = await startPostgres()
  })
  after(async () => await server[Symbol.asyncDispose]())

  async function prepared(
    options: Partial<Parameters<typeof scene>[0]> = {},
    rows: number | undefined = 1000,
  ): Promise<Scene> {
    const name = uniqueName('start')
    const source = await server.createDatabase(`${name}_source`)
    const target = await server.createDatabase(`${name}_target`)
    if (rows !== undefined) await createThings(source, rows)
    return await scene({ source, target, name, ...options })
  }
  /** A role that may log in, and nothing else; ends the name of a database's address. */
  async function weakRole(): Promise<string> {
    const role = uniqueName('weak')
    await sql(server.adminUrl, `create role ${role} login`)
    return role
  }
  const as = (url: string, role: string): string => url.replace('//postgres@', `//${role}@`)

  it('names patterns that fit no table', async () => {
    await using pipeline = await prepared({ include: 'public.nothing' })
    const refusal = await pipeline.refused()
    const { observed, next } = blocker(refusal, 'source.tables')
    assert.match(observed ?? '', /no table fits/)
    assert.match(next ?? '', /tables\.include/)
    assert.deepEqual(await leftAtSource(pipeline), [])
    const check = await pipeline.command(['check'])
    assert.equal(check.code, 1)
    assert.match(check.stdout, /"public\.nothing" matches no\s+table/)
  })

  it('does not guess at an encoding that says nothing', async () => {
    await using pipeline = await prepared()
    const ascii = uniqueName('ascii')
    await sql(server.adminUrl, `create database ${ascii} encoding 'SQL_ASCII' template template0`)
    const bytes = await pipeline.refused({ SOURCE_URL: server.url(ascii) })
    assert.match(blocker(bytes, 'source.encoding').next ?? '', /ENCODING 'UTF8'/)
  })

  it('names each right that is missing at the source, with statements that give them', async () => {
    await using pipeline = await prepared()
    const role = await weakRole()
    const env = { SOURCE_URL: as(pipeline.source, `${role}:${secret}`) }
    const refusal = await pipeline.refused(env)
    assert.match(blocker(refusal, 'source.replication').observed ?? '', new RegExp(`${role} may not replicate`))
    assert.match(blocker(refusal, 'source.select').observed ?? '', /may not read public\.thing/)
    assert.match(
      blocker(refusal, 'source.publication').needed ?? '',
      new RegExp(`publication crossfade_${pipeline.name}`),
    )
    assert.deepEqual(await leftAtSource(pipeline), [])
    for (const told of refusal.error.all ?? []) await follow(pipeline.source, told)
    const worker = pipeline.run([], env)
    const end = await worker.ended
    assert.equal(end.code, 0, end.stdout + end.stderr)
    assert.deepEqual(await pipeline.differences(), [])
    // Made by hand, so left to those who made it.
    assert.deepEqual(await leftAtSource(pipeline), [`publication crossfade_${pipeline.name}`])
  })

  it('names each right that is missing at the target, with statements that give them', async () => {
    await using pipeline = await prepared()
    await sql(pipeline.target, 'create table thing (id int primary key, name text)')
    const role = await weakRole()
    const env = { TARGET_URL: as(pipeline.target, `${role}:${secret}`) }
    const first = await pipeline.refused(env)
    assertRefusal(first, 'NO_RIGHTS', 5)
    assert.match(JSON.stringify(first.error), /crossfade/)
    const check = await pipeline.command(['check', '--json'], env)
    assert.equal(check.code, 1)
    const { findings } = JSON.parse(check.stdout) as {
      findings: readonly { id: string; level: string; observed: string; remedy?: string }[]
    }
    const blockers = findings.filter(({ level }) => level === 'blocker')
    assert.deepEqual(blockers.map(({ id }) => id).toSorted(), ['target.own_schema', 'target.write'])
    const warnings = findings.filter(({ id }) => id === 'target.replica_role' || id === 'target.origins')
    for (const { remedy = '' } of [...blockers, ...warnings]) await sql(pipeline.target, remedy)
    const end = await pipeline.run([], env).ended
    assert.equal(end.code, 0, end.stdout + end.stderr)
    assert.deepEqual(await pipeline.differences(), [])
  })

  it('names a slot that somebody else reads, and then one that somebody else made', async () => {
    await using pipeline = await prepared()
    const slot = `crossfade_${pipeline.name}`
    await sql(pipeline.source, 'create publication others for all tables')
    await sql(pipeline.source, `select pg_create_logical_replication_slot('${slot}', 'pgoutput')`)
    const somebody = { connectionString: pipeline.source, application_name: 'somebody else', replication: 'database' }
    const other = new pg.Client(somebody)
    other.on('error', () => {})
    await other.connect()
    other
      .query(`START_REPLICATION SLOT ${slot} LOGICAL 0/0 (proto_version '1', publication_names 'others')`)
      .catch(() => {})
    await held(pipeline.source, slot)
    const { observed, next } = blocker(await pipeline.refused(), 'source.slot')
    assert.match(observed ?? '', new RegExp(`slot ${slot} is held by somebody else \\(process \\d+\\)`))
    await sql(pipeline.source, next ?? '')
    await other.end().catch(() => {})
    const second = await pipeline.refused()
    assertRefusal(second, 'SLOT_IN_USE', 1)
    assert.equal(second.error.object, `slot ${slot}`)
    assert.match(second.error.next ?? '', new RegExp(`select pg_drop_replication_slot\\('${slot}'\\)`))
    await sql(pipeline.source, `select pg_drop_replication_slot('${slot}'); drop publication others`)
    assert.deepEqual(await leftAtSource(pipeline), [])
    await assertCompletes(pipeline)
  })

  it('names a target table of another shape, with the statement that makes it fit', async () => {
    await using pipeline = await prepared()
    await sql(pipeline.target, 'create table thing (id int primary key, name int)')
    const told = blocker(await pipeline.refused(), 'target.shape')
    assert.equal(told.observed, 'public.thing.name is integer')
    assert.equal(told.needed, 'text')
    assert.deepEqual(await leftAtSource(pipeline), [])
    await follow(pipeline.target, told)
    await assertCompletes(pipeline)
  })

  it('does not copy into a table that holds rows', async () => {
    await using pipeline = await prepared()
    await sql(
      pipeline.target,
      `create table thing (id int primary key, name text); insert into thing values (-1, 'mine')`,
    )
    const check = await pipeline.command(['check', '--json'])
    assert.equal(check.code, 1)
    assert.match(check.stdout, /target\.empty/)
    const told = blocker(await pipeline.refused(), 'target.empty')
    assert.match(told.observed ?? '', /public\.thing holds rows already/)
    assert.deepEqual(await sql(pipeline.target, 'select * from thing'), [{ id: -1, name: 'mine' }])
    assert.deepEqual(await leftAtSource(pipeline), [])
    await follow(pipeline.target, told)
    await assertCompletes(pipeline)
  })

  it('does not take the source for its own target', async () => {
    await using pipeline = await prepared()
    for (const mode of ['full', 'incremental'] as const) {
      await using own = await scene({ source: pipeline.source, target: pipeline.source, mode })
      const told = blocker(await own.refused(), 'target.same')
      assert.match(told.observed ?? '', /the same database/)
      assert.match((await own.command(['check'])).stdout, /the same database/)
    }
    assert.deepEqual(await leftAtSource(pipeline), [])
  })

  it('names a table without a key whose old rows the log would not show', async () => {
    await using pipeline = await prepared()
    await sql(pipeline.source, `create table visit (path text); insert into visit values ('/'), ('/')`)
    const told = blocker(await pipeline.refused(), 'source.identity')
    assert.match(told.observed ?? '', /public\.visit has no primary key/)
    assert.deepEqual(await leftAtSource(pipeline), [])
    await follow(pipeline.source, told)
    await sql(pipeline.source, 'alter table thing replica identity nothing')
    const nothing = blocker(await pipeline.refused(), 'source.identity')
    assert.match(nothing.observed ?? '', /public\.thing .*nothing/i)
    assert.deepEqual(await leftAtSource(pipeline), [])
    await follow(pipeline.source, nothing)
    await assertCompletes(pipeline, ['thing', 'visit'])
  })

  it('decides anew what a start that came to nothing had decided', async () => {
    await using pipeline = await prepared()
    await sql(pipeline.source, 'create table other (id int primary key)')
    // All is well but the slot, which is asked for last.
    await sql(pipeline.source, `select pg_create_logical_replication_slot('crossfade_${pipeline.name}', 'pgoutput')`)
    assertRefusal(await pipeline.refused(), 'SLOT_IN_USE', 1)
    await sql(pipeline.source, `select pg_drop_replication_slot('crossfade_${pipeline.name}')`)
    await sql(pipeline.source, 'drop table other; alter table thing add column price numeric default 1')
    await sql(pipeline.target, 'drop table other; alter table thing add column price numeric')
    await assertCompletes(pipeline)
  })

  it('takes nothing for copied because a start in mode incremental came to nothing', async () => {
    await using pipeline = await prepared({ mode: 'incremental' })
    for (const url of [pipeline.source, pipeline.target])
      await sql(
        url,
        `create table other (id int primary key, name text); insert into other values (1, '${url.length}')`,
      )
    await createThings(pipeline.target, 10)
    const slot = `crossfade_${pipeline.name}`
    await sql(pipeline.source, `select pg_create_logical_replication_slot('${slot}', 'pgoutput')`)
    assertRefusal(await pipeline.refused(), 'SLOT_IN_USE', 1)
    await sql(pipeline.source, `select pg_drop_replication_slot('${slot}')`)
    const noted = 'select table_name as name, live from crossfade.copy order by 1'
    assert.deepEqual(await sql(pipeline.target, noted), [
      { name: 'other', live: true },
      { name: 'thing', live: true },
    ])
    await configure(pipeline, { include: ['public.*'], exclude: ['public.other'] })
    const check = await pipeline.command(['check'])
    assert.match(check.stdout, /public\.thing holds rows already/)
    assert.equal(check.code, 1)
    await follow(pipeline.target, blocker(await pipeline.refused(), 'target.empty'))
    const worker = pipeline.run()
    await untilEqual(pipeline, worker)
    assert.equal((await worker.stop()).code, 0)
    assert.deepEqual(
      (await sql(pipeline.target, noted)).map(({ name }) => name),
      ['thing'],
    )
    await configure(pipeline, { include: ['public.*'] })
    await follow(pipeline.target, blocker(await pipeline.refused(), 'target.empty'))
    const both = pipeline.run()
    await untilEqual(pipeline, both, 80, ['thing', 'other'])
    assert.equal((await both.stop()).code, 0)
  })

  it('does not take the log of an earlier pipeline for its own', async () => {
    await using pipeline = await prepared()
    await assertCompletes(pipeline)
    await sql(pipeline.target, 'drop schema crossfade cascade; truncate thing')
    const refusal = await pipeline.refused()
    assertRefusal(refusal, 'TOPIC_MISMATCH', 1)
    assert.match(refusal.error.object ?? '', new RegExp(`${pipeline.name}\\.`))
    assert.match(refusal.error.observed ?? '', /records of an earlier pipeline/)
    assert.deepEqual(await sql(pipeline.target, 'select count(*)::int as n from thing'), [{ n: 0 }])
    assert.deepEqual(await leftAtSource(pipeline), [])
  })

  for (const end of ['source', 'target'] as const) {
    it(`names a ${end} that does not answer`, async () => {
      await using pipeline = await prepared()
      const env = { [`${end.toUpperCase()}_URL`]: `postgres://someone:${secret}@127.0.0.1:1/shop` }
      const refusal = await pipeline.refused(env)
      assertRefusal(refusal, 'SERVER_UNREACHABLE', 5)
      assert.match(refusal.error.object ?? '', /127\.0\.0\.1:1\/shop/)
      assert.match(refusal.error.observed ?? '', /ECONNREFUSED/)
      assert.deepEqual(await leftAtSource(pipeline), [])
      const check = await pipeline.command(['check'], env)
      assert.equal(check.code, 5)
      assert.match(check.stdout, /SERVER_UNREACHABLE/)
    })
  }

  it('names a broker that does not answer', async () => {
    const log = '{ type: kafka, brokers: ["127.0.0.1:1"], partitions: 1, replication: 1 }'
    await using pipeline = await prepared({ log })
    const refusal = await pipeline.refused()
    assertRefusal(refusal, 'SERVER_UNREACHABLE', 5)
    assert.match(refusal.error.object ?? '', /Kafka at 127\.0\.0\.1:1/)
    assert.match(refusal.error.next ?? '', /log\.brokers/)
    assert.deepEqual(await leftAtSource(pipeline), [])
  })

  it('names a database that is not there', async () => {
    await using pipeline = await prepared()
    const refusal = await pipeline.refused({ TARGET_URL: server.url('no_such_database') })
    assert.equal(refusal.error.code, 'DATABASE_MISSING')
    assert.match(refusal.error.observed ?? '', /database "no_such_database" does not exist/)
    assert.match(refusal.error.next ?? '', /Create the database/)
    assert.equal(refusal.code, 1)
  })

  it('shows where a configuration is wrong', async () => {
    await using pipeline = await prepared({ more: 'aply: { lanes: 2 }' })
    const end = await pipeline.command(['run'], { TARGET_URL: undefined })
    assert.equal(end.code, 2)
    assert.match(end.stderr, /CONFIG_INVALID/)
    assert.match(end.stderr, /crossfade\.yaml:4.*\n.*TARGET_URL/)
    assert.match(end.stderr, /crossfade\.yaml:7[^]*aply[^]*apply/)
    assert.equal(end.stdout, '')
  })
})

/** One after the other: each changes what all databases of the server share. */
describe('a source whose settings do not allow it', needs('pg'), () => {
  let server: PostgresServer
  before(async () => {
    server = await startPostgres({ settings: { wal_level: 'replica', max_replication_slots: 1 } })
  })
  after(async () => await server[Symbol.asyncDispose]())

  it('is named with the statements that change them, and is served after them', async () => {
    const [source, target] = [await server.createDatabase('source'), await server.createDatabase('target')]
    await createThings(source)
    await using pipeline = await scene({ source, target })
    const refusal = await pipeline.refused()
    const level = blocker(refusal, 'source.wal_level')
    assert.equal(level.observed, 'replica')
    assert.equal(level.needed, 'logical')
    const slots = blocker(refusal, 'source.slots')
    assert.match(slots.observed ?? '', /1 of 1 replication slots free/)
    for (const told of [level, slots]) await follow(server.adminUrl, told)
    // A setting on the command line, as our servers have them, would win over what was just written.
    await server.restart({ wal_level: 'logical', max_replication_slots: 3 })
    await assertCompletes(pipeline)
  })

  it('is named where every slot is taken, with the slots that nobody reads', async () => {
    const [source, target] = [await server.createDatabase('source2'), await server.createDatabase('target2')]
    await createThings(source)
    for (const n of [1, 2]) await sql(source, `select pg_create_physical_replication_slot('taken_${n}')`)
    await using pipeline = await scene({ source, target })
    const slots = blocker(await pipeline.refused(), 'source.slots')
    assert.match(slots.observed ?? '', /1 of 3 replication slots free/)
    assert.match(slots.next ?? '', /pg_drop_replication_slot\('taken_1'\)/)
    assert.deepEqual(await leftAtSource(pipeline), [])
    for (const n of [1, 2]) await sql(source, `select pg_drop_replication_slot('taken_${n}')`)
  })

  it('is named where it refuses the password, which is not shown', async () => {
    const [source, target] = [await server.createDatabase('source3'), await server.createDatabase('target3')]
    await createThings(source)
    await sql(server.adminUrl, `create role careful superuser login password 'another'`)
    const file = join(server.dataDir, 'pg_hba.conf')
    const rules = await readFile(file, 'utf8')
    await writeFile(file, 'host all careful 127.0.0.1/32 scram-sha-256\n')
    await appendFile(file, rules)
    await sql(server.adminUrl, 'select pg_reload_conf()')
    await using pipeline = await scene({ source, target })
    const refusal = await pipeline.refused({ SOURCE_URL: source.replace('postgres@', `careful:${secret}@`) })
    assertRefusal(refusal, 'NO_RIGHTS', 5)
    assert.match(refusal.error.observed ?? '', /password authentication failed for user "careful"/)
    assert.match(refusal.error.next ?? '', /user and password/)
  })
})

/** Resolves when the slot has a reader. */
async function held(url: string, slot: string): Promise<void> {
  for (const deadline = performance.now() + 10_000; performance.now() < deadline;) {
    const rows = await sql(url, `select from pg_replication_slots where slot_name = $1 and active`, [slot])
    if (rows.length > 0) return
  }
  throw new Error(`nobody reads ${slot}`)
}
