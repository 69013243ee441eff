import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { connect, parse } from '../../../connectors/postgres/config.ts'
import { openReader } from '../../../connectors/postgres/reader.ts'
import { readCatalog, tableSchema } from '../../../connectors/postgres/schema.ts'
import type { Position, Range } from '../../../src/model.ts'
import { verifyChunk } from '../../../src/verify/chunk.ts'
import type { ChunkLine, Line } from '../../../src/verify/journal.ts'
import { stillness } from '../../../src/verify/settle.ts'
import { timed } from '../../../src/verify/timed.ts'
import { needs, postgres } from '../../support/servers.ts'

const signal = AbortSignal.timeout(120_000)

/** The lines of one piece, the whole table `t` as the statements make it at either end. */
async function compared(source: string, target: string, readMs = 60_000): Promise<readonly Line[]> {
  const server = await postgres()
  const [from, to] = [parse({ url: await server.database('pieces') }), parse({ url: await server.database('pieces') })]
  for (const [config, statements] of [
    [from, source],
    [to, target],
  ] as const) {
    const client = await connect(config, { name: 'test' }, signal)
    await client.query(`set search_path = public; ${statements}; analyze t`)
    await client.end()
  }
  const client = await connect(from, { name: 'test' }, signal)
  const [table] = await readCatalog(client, ({ name }) => name === 't')
  await client.end()
  assert.ok(table)
  const schema = tableSchema(table, 1)
  await using one = await openReader(from, 'now', 'test', signal)
  await using other = await openReader(to, 'now', 'test', signal)
  const ends = { source: timed(one, readMs), target: timed(other, readMs) }
  const whole: Range = { table: schema.table, estimatedRows: 0 }
  const witness = stillness(async () => '0' as Position)
  const options = { settleMs: 20_000, withValues: false, now: Date.now }
  return await verifyChunk(ends, schema, [whole], { first: 0, last: 0 }, witness, options, signal)
}

function chunkOf(lines: readonly Line[]): ChunkLine {
  return lines.at(-1) as ChunkLine
}

describe('a piece of a table', needs('pg'), () => {
  it('with rows at the target whose key is NULL is not equal, however it is cut', async () => {
    const many = `create table t (id int %, name text); create unique index on t (id); insert into t select i, 'n' from generate_series(1, 5000) i`
    const lines = await compared(
      `${many.replace('%', 'not null')}; alter table t add primary key (id)`,
      `${many.replace('%', '')}; insert into t select null, 'lost' from generate_series(1, 7)`,
    )
    const chunk = chunkOf(lines)
    assert.deepEqual([chunk.verdict, chunk.unsettled, chunk.source, chunk.target], ['unknown', 7, 5000, 5007])
    assert.match(chunk.why ?? '', /its key is NULL/)
  })

  it('of large rows that all differ is told row by row', async () => {
    const rows = (text: string): string =>
      `create table t (id int primary key, name text); insert into t select i, repeat('${text}' || i, 1500) from generate_series(1, 1450) i`
    const lines = await compared(rows('a'), rows('b'))
    assert.deepEqual([chunkOf(lines).different, chunkOf(lines).why], [1450, undefined])
    assert.deepEqual(
      new Set(lines.flatMap((line) => (line.kind === 'difference' ? line.key : []))),
      new Set(Array.from({ length: 1450 }, (_, i) => String(i + 1))),
    )
  })

  it('of a table that takes longer to read than is allowed is unknown', async () => {
    const slow = `create table t (id int primary key);
      insert into t select generate_series(1, 200000)`
    const chunk = chunkOf(await compared(slow, `${slow}; delete from t where id = 199999`, 5))
    assert.deepEqual([chunk.verdict, chunk.unread], ['unknown', true])
    assert.match(chunk.why ?? '', /LIMIT_EXCEEDED: reading it took longer than 0\.005 s/)
  })
})
