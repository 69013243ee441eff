import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type pg from 'pg'
import { selectTypeParts } from '../../../connectors/postgres/check-queries.ts'
import { checkOccupied, checkTarget } from '../../../connectors/postgres/check-target.ts'
import { checkSource } from '../../../connectors/postgres/check.ts'
import { connect, parse, type PostgresConfig } from '../../../connectors/postgres/config.ts'
import { readCatalog, tableSchema } from '../../../connectors/postgres/schema.ts'
import type { Finding } from '../../../src/connector.ts'
import { Failure } from '../../../src/errors.ts'
import type { TableId, TableSchema } from '../../../src/model.ts'
import { startPostgres } from '../../support/postgres.ts'
import { needs, postgres } from '../../support/servers.ts'

const signal = AbortSignal.timeout(90_000)
let roles = 0

for (const version of [18, 14] as const) {
  describe(`preflight of version ${version}`, needs(version === 18 ? 'pg' : 'pg14'), () => {
    let url: string
    let admin: pg.Client
    let config: PostgresConfig

    before(async () => {
      url = await (await postgres(version)).database('check')
      config = parse({ url })
      admin = await connect(config, { name: 'test' }, signal)
    })
    after(() => admin.end())

    /** A session of a fresh role that may log in and nothing else. */
    async function stranger<Result>(
      attributes: string,
      work: (client: pg.Client, role: string) => Promise<Result>,
    ): Promise<Result> {
      const role = `check_${process.pid}_${version}_${++roles}`
      await admin.query(`create role ${role} login ${attributes}`)
      const its = new URL(url)
      its.username = role
      const client = await connect(parse({ url: its.href }), { name: 'test' }, signal)
      try {
        return await work(client, role)
      } finally {
        await client.end()
        await admin.query(`drop owned by ${role}; drop role ${role}`)
      }
    }
    const source = (client: pg.Client, schema: string): Promise<readonly Finding[]> =>
      checkSource(client, (id) => id.schema === schema, 'shop')
    async function schemas(filter: (id: TableId) => boolean): Promise<TableSchema[]> {
      return (await readCatalog(admin, filter)).map((table) => tableSchema(table, 1))
    }

    test('a source that is ready has no blocker', async () => {
      await admin.query('create schema ready; create table ready.t (id int primary key)')
      const found = await source(admin, 'ready')
      assert.deepEqual(blockers(found), [])
      assert.ok(found.some((finding) => finding.id === 'source.wal_level' && finding.level === 'ok'))
    })

    test('a table that somebody has locked for himself is named with who it is and what to do, not waited for', async () => {
      await admin.query('create schema locked; create table locked.t (id int primary key)')
      const known = await schemas(({ schema }) => schema === 'locked')
      const locker = await connect(config, { name: 'test' }, signal)
      const looker = await connect(config, { name: 'test', lockTimeoutMs: 300 }, signal)
      try {
        const looks = {
          source: async () => await source(looker, 'locked'),
          target: async () => await checkTarget(looker, known),
          occupied: async () => await checkOccupied(looker, known),
        }
        for (const [what, look] of Object.entries(looks)) {
          await locker.query('begin; lock table locked.t')
          const { rows } = await locker.query<{ pid: number }>('select pg_backend_pid() as pid')
          await assert.rejects(look(), (error) => {
            assert.ok(error instanceof Failure && error.code === 'SERVER_BUSY', `${what}: ${String(error)}`)
            assert.equal(error.facts.object, 'locked.t')
            assert.match(
              error.facts.observed ?? '',
              new RegExp(`process ${rows[0]?.pid} .*idle in transaction for \\d+ s`),
            )
            assert.match(error.facts.next ?? '', new RegExp(`pg_terminate_backend\\(${rows[0]?.pid}\\)`))
            return true
          })
          await locker.query('rollback')
          await look()
        }
      } finally {
        await Promise.all([locker.end(), looker.end()])
      }
    })

    test('a type that is another at the target is a blocker with the statements that mend it', async () => {
      const target = await connect(
        parse({ url: await (await postgres(version)).database('check_types') }),
        { name: 'test' },
        signal,
      )
      const tables = `create table typed.t (id int primary key, m typed.mood, d typed.glad[], p typed.part, s typed.same)`
      try {
        for (const [client, labels, fields] of [
          [admin, `'a', 'low', 'mid', 'it''s', 'top'`, 'a int, b numeric(6,2), c text'],
          [target, `'low', 'mid', 'more'`, 'a int'],
        ] as const)
          await client.query(`create schema typed; create type typed.mood as enum (${labels}); create domain typed.glad as typed.mood;
            create type typed.part as (${fields}); create type typed.same as (a int, b typed.mood); ${tables}`)
        const known = await schemas(({ schema }) => schema === 'typed')
        const catalog = await readCatalog(admin, ({ schema }) => schema === 'typed')
        const types = await selectTypeParts(
          admin,
          catalog.map(({ oid }) => oid),
        )
        assert.deepEqual(
          types.map(({ type }) => type),
          ['typed.mood', 'typed.part', 'typed.same'],
        )
        assert.deepEqual(blockers(await checkTarget(target, known)), [])
        const found = (await checkTarget(target, known, { types })).filter(({ level }) => level === 'blocker')
        assert.deepEqual(
          found.map(({ observed }) => observed),
          [
            `type typed.mood has no label 'a', 'it''s', 'top': a row with it would be refused`,
            'type typed.part is ("a" integer)',
          ],
        )
        for (const { remedy = '' } of found) for (const statement of remedy.split('\n')) await target.query(statement)
        assert.deepEqual(
          (await checkTarget(target, known, { types })).filter(
            ({ id, level }) => id === 'target.shape' && level !== 'ok',
          ),
          [],
        )
        await target.query(`insert into typed.t values (1, 'a', '{top}', '(1,2.50,x)', '(1,it''s)')`)
      } finally {
        await target.end()
      }
    })

    test('places for the names of our writes that others have taken are named with what frees them', async () => {
      const { rows } = await admin.query<{ limit: number; used: number }>(
        `select coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int as limit,
                (select count(*)::int from pg_replication_origin) as used`,
      )
      const { limit = 0, used = 0 } = rows[0] ?? {}
      const old = Array.from({ length: limit - used - 2 }, (_, i) => `crossfade:old ${version}:${i}`)
      for (const name of old) await admin.query('select pg_replication_origin_create($1)', [name])
      try {
        const told = async (): Promise<Finding | undefined> =>
          (await checkTarget(admin, [], {}, 'shop')).find(
            ({ id, level }) => id === 'target.origins' && level === 'warning',
          )
        const found = await told()
        assert.match(
          found?.observed ?? '',
          new RegExp(`^2 of ${limit} replication origins free, and .*crossfade:old ${version}:0`),
        )
        await admin.query(
          (found?.remedy ?? '')
            .split('\n')
            .filter((line) => line.includes(`old ${version}:`))
            .slice(0, 2)
            .join('\n'),
        )
        assert.equal(await told(), undefined)
      } finally {
        await admin.query('select pg_replication_origin_drop(roname) from pg_replication_origin where roname like $1', [
          `crossfade:old ${version}:%`,
        ])
      }
    })

    test('no table is a blocker', async () => {
      assert.deepEqual(blockers(await source(admin, 'nowhere')), ['source.tables'])
    })

    test('whole old rows with a generated column are refused where the source would refuse changes', async () => {
      const generated = 'a int, b int generated always as (a * 2) stored'
      await admin.query(`create schema gen; create table gen.keyless (${generated}); alter table gen.keyless replica identity full;
        create table gen.none (${generated}); create table gen.keyed (id int primary key, ${generated}); alter table gen.keyed replica identity full`)
      for (const round of [1, 2]) {
        const found = (await source(admin, 'gen')).filter(({ level }) => level === 'blocker')
        const wanted = round === 2 ? [] : version === 18 ? ['keyed', 'keyless', 'none'] : ['none']
        assert.deepEqual(
          found.map(({ observed }) => /gen\.(\w+)/.exec(observed)?.[1]),
          wanted,
        )
        for (const { remedy } of found) await admin.query(remedy ?? '')
      }
      await admin.query('create publication gen for table gen.keyless, gen.none, gen.keyed')
      for (const table of ['keyless', 'none', 'keyed']) await admin.query(`update gen.${table} set a = 1`)
      await admin.query('drop publication gen')
    })

    test('a role without rights is told what to run, and after that is content', async () => {
      await admin.query('create schema rights; create table rights.t (id int primary key)')
      await stranger('', async (client, role) => {
        const found = await source(client, 'rights')
        assert.deepEqual(blockers(found), ['source.publication', 'source.replication', 'source.select', 'source.usage'])
        for (const { level, remedy } of found) if (level === 'blocker') await admin.query(remedy ?? '')
        // The publication was made by a superuser; to be changed by us it has to be ours.
        await admin.query(`grant create on database ${JSON.stringify(config.database)} to ${role}`)
        await admin.query(`alter publication crossfade_shop owner to ${role}`)
        assert.deepEqual(blockers(await source(client, 'rights')), [])
        await admin.query('drop publication crossfade_shop')
      })
    })

    test('tables whose updates the source would refuse', async () => {
      await admin.query(`create schema keys;
        create table keys.none (a int); create table keys.late (a int primary key deferrable);
        create table keys.nothing (a int primary key); alter table keys.nothing replica identity nothing;
        create table keys.whole (a int); alter table keys.whole replica identity full; create table keys.good (a int primary key)`)
      const found = await source(admin, 'keys')
      assert.deepEqual(
        found.filter((finding) => finding.id === 'source.identity').map((finding) => finding.observed.split(' ')[0]),
        ['keys.late', 'keys.none', 'keys.nothing'],
      )
      assert.ok(found.some((finding) => finding.id === 'source.keyless' && finding.observed.startsWith('keys.whole')))
      for (const { level, remedy } of found) if (level === 'blocker') await admin.query(remedy ?? '')
      assert.deepEqual(blockers(await source(admin, 'keys')), [])
    })

    test('row security, unlogged tables, transactions and slots of others', async () => {
      await admin.query(`create schema others; create table others.t (id int primary key); create unlogged table others.u (id int);
        alter table others.t enable row level security; select lo_create(0)`)
      await stranger('replication', async (client, role) => {
        await admin.query(`grant usage on schema others to ${role}; grant select on others.t to ${role}`)
        const found = await source(client, 'others')
        assert.deepEqual(blockers(found), ['source.publication', 'source.row_security'])
        const warned = found.filter((finding) => finding.level === 'warning').map((finding) => finding.id)
        assert.ok(warned.includes('source.left_out') && warned.includes('source.large_objects'))
      })
      await admin
        .query(`select pg_create_logical_replication_slot('crossfade_shop', 'test_decoding')`)
        .catch(() => admin.query(`select pg_create_physical_replication_slot('crossfade_shop')`))
      assert.deepEqual(blockers(await source(admin, 'others')), ['source.slot'])
      await admin.query(`select pg_drop_replication_slot('crossfade_shop')`)
    })

    test('what is beside ordinary tables is named, each with what to do', async () => {
      await admin.query(`create schema beside; create table beside.t (id int primary key generated always as identity);
        create materialized view beside.m as select count(*) from beside.t; create sequence beside.alone;
        create sequence beside.used; create table beside.uses (id int primary key default nextval('beside.used'));
        create unlogged table beside.fleeting (id int primary key); create foreign data wrapper w; create server s foreign data wrapper w;
        create foreign table beside.far (id int) server s; create table beside.empty ()`)
      const found = (await source(admin, 'beside')).filter(({ id }) => id === 'source.left_out')
      assert.deepEqual(
        found.map(({ level, observed }) => `${level}: ${observed.split(' is left out')[0]}`),
        [
          'warning: beside.empty',
          'warning: beside.far',
          'warning: beside.fleeting',
          'warning: materialized view beside.m',
          'warning: sequence beside.alone',
        ],
      )
      for (const { remedy } of found) assert.ok(remedy !== undefined && remedy !== '')
      await admin.query('drop schema beside cascade; drop foreign data wrapper w cascade')
    })

    test('H6: a target that would take two keys for one is a blocker', async () => {
      await admin.query(`create schema merged; create table merged.t (k text primary key, n numeric unique);
        create table merged.n (k numeric primary key); create table merged.same (k varchar(5) primary key, v text);
        create table merged.beside (id int primary key, u int)`)
      const tables = await schemas((id) => id.schema === 'merged')
      const shape = async (): Promise<readonly string[]> =>
        (await checkTarget(admin, tables))
          .filter((finding) => finding.id === 'target.shape')
          .map((finding) => `${finding.level}: ${finding.observed.split(/ with|:|,/)[0]}`)
      assert.deepEqual(await shape(), [])
      await admin.query(`create collation merged.blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        alter table merged.same alter k type varchar(5) collate merged.blind;
        alter table merged.t alter k type varchar(3); alter table merged.n alter k type numeric(6, 1);
        create unique index more on merged.beside (u)`)
      const found = await checkTarget(admin, tables)
      assert.deepEqual(await shape(), [
        'warning: merged.beside has unique index more',
        'blocker: merged.n.k is numeric(6',
        'blocker: merged.same.k is character varying(5)',
        'blocker: merged.t.k is character varying(3)',
      ])
      for (const { remedy } of found) await admin.query(remedy ?? '')
      assert.deepEqual(await shape(), [])
    })

    test('a target with nothing in it has no blocker', async () => {
      await admin.query('create schema gone; create table gone.t (id int primary key)')
      const tables = await schemas((id) => id.schema === 'gone')
      await admin.query('drop table gone.t')
      assert.deepEqual(blockers(await checkTarget(admin, tables)), [])
    })

    test('a target table is compared column by column', async () => {
      await admin.query(
        `create schema shape; create table shape.t (id int primary key, same text, narrower int8, wider int4, other text, nulls int, short varchar(10), lost int)`,
      )
      const tables = await schemas((id) => id.schema === 'shape')
      assert.deepEqual(blockers(await checkTarget(admin, tables)), [])
      await admin.query(`drop table shape.t; create table shape.t (id int, same text, narrower int4, wider int8, other date,
        nulls int not null default 0, short varchar(5), extra int not null, free int)`)
      const found = await checkTarget(admin, tables)
      const said = found
        .filter((finding) => finding.id === 'target.shape')
        .map((finding) => `${finding.level}: ${finding.observed}`)
      assert.deepEqual(said.toSorted(), [
        'blocker: shape.t has no unique index over (id)',
        'blocker: shape.t.extra needs a value, and the source has no such column',
        'blocker: shape.t.lost is missing',
        'blocker: shape.t.narrower is integer',
        'blocker: shape.t.nulls takes no NULL',
        'blocker: shape.t.other is date',
        'blocker: shape.t.short is character varying(5)',
        'warning: shape.t.free is not at the source: it keeps its default',
      ])
      for (const { level, remedy } of found) if (level === 'blocker') await admin.query(remedy ?? '')
      assert.deepEqual(blockers(await checkTarget(admin, tables)), [])
      await admin.query(
        'alter table shape.t drop constraint t_pkey; alter table shape.t add primary key (id) deferrable',
      )
      assert.deepEqual(blockers(await checkTarget(admin, tables)), ['target.shape'])
      await admin.query(
        'alter table shape.t drop constraint t_pkey, alter id drop not null; create unique index on shape.t (id)',
      )
      const [nullable] = (await checkTarget(admin, tables)).filter(({ level }) => level === 'blocker')
      assert.equal(nullable?.observed, 'shape.t.id is part of the key and takes NULL')
      await admin.query(nullable.remedy ?? '')
      assert.deepEqual(blockers(await checkTarget(admin, tables)), [])
      await admin.query('drop table shape.t; create view shape.t as select 1 as id')
      assert.deepEqual(blockers(await checkTarget(admin, tables)), ['target.shape'])
    })

    test('a column that is missing beside rows is not to be added without their values; on the way, run says what is to be done', async () => {
      await admin.query('create schema lacks; create table lacks.t (id int primary key, lost int not null)')
      const tables = await schemas((id) => id.schema === 'lacks')
      await admin.query('alter table lacks.t drop column lost')
      const remedy = async (changing?: ReadonlySet<string>): Promise<string> => {
        const found = await checkTarget(admin, tables, { changing })
        return found.flatMap((each) => (each.id === 'target.shape' ? [`${each.level} ${each.remedy}`] : [])).join('\n')
      }
      assert.equal(await remedy(), 'blocker ALTER TABLE "lacks"."t" ADD COLUMN "lost" integer;')
      await admin.query('insert into lacks.t values (1)')
      assert.match(await remedy(), /^blocker -- lacks\.t\.lost: the rows that are there need the source’s values/)
      assert.match(await remedy(new Set(['lacks.t'])), /^warning Run the pipeline: /)
    })

    test('foreign keys and triggers block where they cannot be switched off', async () => {
      await admin.query(`create schema acts; create table acts.a (id int primary key);
        create table acts.b (id int primary key, a int references acts.a, u int unique deferrable);
        create function acts.f() returns trigger language plpgsql as 'begin return new; end';
        create trigger t before insert on acts.a for each row execute function acts.f();
        create trigger always before insert on acts.a for each row execute function acts.f();
        alter table acts.a enable always trigger always`)
      const tables = await schemas((id) => id.schema === 'acts')
      assert.deepEqual(blockers(await checkTarget(admin, tables)), ['target.trigger'])
      await admin.query(`create rule beside as on update to acts.a do also select 1; alter table acts.a disable rule beside;
        create rule never as on insert to acts.b do also select 1; create table public.outer_key (id int references acts.a)`)
      const ruled = await checkTarget(admin, tables)
      assert.deepEqual(blockers(ruled), ['target.rule', 'target.trigger'])
      assert.ok(ruled.some(({ id, level }) => id === 'target.truncate' && level === 'warning'))
      await admin.query('drop rule beside on acts.a; drop rule never on acts.b; drop table public.outer_key')
      await stranger('', async (client, role) => {
        const first = await checkTarget(client, tables)
        assert.deepEqual(blockers(first), [
          'target.own_schema',
          'target.replica_role',
          'target.trigger',
          'target.write',
        ])
        const acting = first
          .filter((finding) => finding.id === 'target.replica_role')
          .map((finding) => finding.observed)
        assert.equal(acting.length, 3)
        await admin.query(`grant create on database ${JSON.stringify(config.database)} to ${role}; grant usage on schema acts to ${role};
          grant all on acts.a, acts.b to ${role}; alter table acts.a disable trigger always`)
        assert.deepEqual(blockers(await checkTarget(client, tables)), ['target.replica_role'])
        if (version === 18) {
          await admin.query(`grant set on parameter session_replication_role to ${role}`)
          assert.deepEqual(blockers(await checkTarget(client, tables)), [])
        }
      })
    })
  })
}

test('a source that was not set up for it', needs('pg'), async () => {
  await using server = await startPostgres({
    settings: { wal_level: 'replica', max_replication_slots: 1, max_wal_senders: 1 },
  })
  const config = parse({ url: await server.createDatabase('check') })
  const client = await connect(config, { name: 'test' }, signal)
  await client.query(`create table public.t (id int primary key); select pg_create_physical_replication_slot('old')`)
  const found = await checkSource(client, () => true, 'shop')
  await client.end()
  assert.deepEqual(blockers(found), ['source.senders', 'source.slots', 'source.wal_level'])
  assert.match(
    found.find((finding) => finding.id === 'source.slots')?.remedy ?? '',
    /pg_drop_replication_slot\('old'\)/,
  )
})

function blockers(findings: readonly Finding[]): string[] {
  for (const finding of findings)
    if (finding.level === 'blocker') assert.ok(finding.remedy !== '' && finding.needed !== '')
  return [...new Set(findings.filter((finding) => finding.level === 'blocker').map((finding) => finding.id))].toSorted()
}
