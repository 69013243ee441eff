import assert from 'node:assert/strict'
import { suite, test } from 'node:test'
import { LogicalReplicationService, PgoutputPlugin, type Pgoutput } from 'pg-logical-replication'
import { parse, replicationOptions } from '../../../connectors/postgres/config.ts'
import { parseLsn, positionOf } from '../../../connectors/postgres/position.ts'
import type { Flat } from '../../support/flatten.ts'
import { readToMessage, streamBed, type StreamBed } from '../../support/pg-stream.ts'
import { needs, postgres } from '../../support/servers.ts'

const ddl = `create table a (id int primary key, name text, big text);
  alter table a alter big set storage external;
  create table f (x int, y text, z text); alter table f replica identity full; alter table f alter z set storage external;
  create table gone (id int primary key, dropped int, kept text, made text generated always as (kept || '!') stored);
  alter table gone drop dropped`

for (const version of [18, 14] as const) {
  suite(
    `our plugin and the library's over the log of PostgreSQL ${version}`,
    needs(version === 18 ? 'pg' : 'pg14'),
    () => {
      test('agree on rows, numbers and order, transactions in progress and aborted parts included', async () => {
        const server = await postgres(version)
        await using bed = await streamBed(await server.database('agree'), ddl)
        const ours = await bed.slot()
        const stock = await bed.slot()
        await writeALot(bed)
        const reading = readStock(bed, stock)
        await using stream = await bed.open(ours, { client: streamingClient(bed.url) })
        const seen = (await readToMessage(stream, 'end')).map(comparable)
        const expected = await reading
        assert.equal(seen.length, expected.length)
        for (let i = 0; i < expected.length; i++) assert.deepEqual(seen[i], expected[i], `event ${i}`)
      })

      test('a transaction in progress goes to disk beyond the memory budget, and nothing of an aborted one appears', async () => {
        const server = await postgres(version)
        await using bed = await streamBed(await server.database('spool'), ddl)
        const slot = await bed.slot()
        await using stream = await bed.open(slot, {
          client: streamingClient(bed.url),
          spool: { memoryBytes: 100_000, diskBytes: 1 << 30 },
        })
        await bed.client.query(
          "begin; insert into a select i, 'lost', repeat('l', 500) from generate_series(1, 2000) i; rollback",
        )
        await bed.client.query(
          "begin; insert into a select i, 'kept', repeat('k', 500) from generate_series(1, 5000) i; commit",
        )
        await bed.client.query("select pg_logical_emit_message(false, 'p', 'end')")
        const all = await readToMessage(stream, 'end')
        assert.equal(all.length, 5001)
        assert.ok(all.every((flat, i) => flat.kind !== 'change' || (flat.new[1] === 'kept' && flat.seq === 4 * i)))
      })
    },
  )
}

/** Decoding keeps little in memory, so that transactions of some hundred rows are sent while they run. */
function streamingClient(url: string): ReturnType<typeof replicationOptions> {
  const client = replicationOptions(parse({ url }), 'stream', 'test')
  return { ...client, options: `${client.options} -c logical_decoding_work_mem=64kB` }
}

async function writeALot({ client }: StreamBed): Promise<void> {
  await client.query(
    "insert into a values (1, 'one', repeat('x', 10000)), (2, null, ''), (3, 'three', repeat('y', 9000))",
  )
  await client.query("update a set name = 'uno' where id = 1")
  await client.query('update a set id = 4 where id = 3')
  await client.query("insert into f values (1, 'é', repeat('z', 10000)), (1, 'é', null)")
  await client.query('update f set x = x + 1; delete from f where z is null')
  await client.query("insert into gone values (1, 'a'); update gone set kept = 'b'")
  await client.query(`begin; savepoint s1; insert into a select i, 'aborted', 'x' from generate_series(1000, 3000) i;
    rollback to s1; insert into a select i, 'kept ' || i, repeat('k', 100) from generate_series(1000, 3000) i;
    savepoint s2; update a set name = 'kept too' where id between 1000 and 2000;
    savepoint s3; delete from a where id > 1500; insert into gone select i, 'new table in an aborted part' from generate_series(2, 900) i;
    rollback to s3; insert into gone values (901, 'x'); release s2; truncate f; insert into f values (7, 'after', null); commit`)
  await client.query("begin; insert into a select i, 'never' from generate_series(5000, 9000) i; rollback")
  await client.query(
    "begin; insert into a select i, 'prepared' from generate_series(20000, 21000) i; prepare transaction 'two'",
  )
  await client.query('delete from a where id < 5')
  await client.query("commit prepared 'two'")
  await client.query("select pg_logical_emit_message(false, 'p', 'end')")
}

type Comparable = { readonly position?: string; readonly what: unknown; readonly seq?: number }
function comparable(flat: Flat): Comparable {
  if (flat.kind === 'message') return { what: ['message', flat.prefix, flat.content] }
  const { position, seq } = flat
  if (flat.kind === 'effect') return { position, seq, what: flat.effect }
  return { position, seq, what: [flat.table, flat.op, flat.old, flat.new] }
}

/** The library's own plugin does not know transactions in progress: it gets everything at its commit. */
async function readStock(bed: StreamBed, slot: string): Promise<Comparable[]> {
  const service = new LogicalReplicationService(replicationOptions(parse({ url: bed.url }), 'stock', 'test'), {
    acknowledge: { auto: false, timeoutSeconds: 0 },
  })
  const plugin = new PgoutputPlugin({ protoVersion: 1, publicationNames: [bed.publication], messages: true })
  const all: Comparable[] = []
  let position = ''
  let number = 0
  const cells = (
    relation: Pgoutput.MessageRelation,
    row: Record<string, string | number | null | undefined> | null,
    keyOnly = false,
  ): unknown[] =>
    row === null
      ? []
      : relation.columns.map(({ name }) => {
          if (keyOnly && !relation.keyColumns.includes(name)) return null
          const value = row[name]
          return value === null || value === undefined ? value : String(value)
        })
  const ended = new Promise<void>((resolve, reject) => {
    service.on('error', reject)
    service.on('data', (_lsn: string, message: Pgoutput.Message) => {
      const add = (what: unknown): void => void all.push({ position, seq: 4 * number++, what })
      switch (message.tag) {
        case 'begin':
          position = positionOf(parseLsn(message.commitLsn ?? ''))
          number = 0
          break
        case 'insert':
          add([nameOf(message.relation), 0, [], cells(message.relation, message.new)])
          break
        case 'update': {
          const old = message.old ? cells(message.relation, message.old) : cells(message.relation, message.key, true)
          const fresh = cells(message.relation, message.new)
          add([
            nameOf(message.relation),
            1,
            old,
            message.old ? fresh.map((cell, i) => (cell === undefined ? old[i] : cell)) : fresh,
          ])
          break
        }
        case 'delete':
          add([
            nameOf(message.relation),
            2,
            message.old ? cells(message.relation, message.old) : cells(message.relation, message.key, true),
            [],
          ])
          break
        case 'truncate':
          add({
            kind: 'truncate',
            tables: message.relations.map(({ schema, name }) => ({ schema, name })),
            cascade: message.cascade,
            restartCounters: message.restartIdentity,
          })
          break
        case 'message': {
          const content = Buffer.from(message.content).toString()
          all.push({ what: ['message', message.prefix, content] })
          if (content === 'end') resolve()
          break
        }
        default:
          break
      }
    })
  })
  const subscribed = service.subscribe(plugin, slot).catch(() => {})
  await ended
  await service.destroy()
  await subscribed
  return all
}

function nameOf(relation: Pgoutput.MessageRelation): string {
  return `${relation.schema}.${relation.name}`
}
