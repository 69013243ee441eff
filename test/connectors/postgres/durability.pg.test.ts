import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { parse } from '../../../connectors/postgres/config.ts'
import { openStore } from '../../../connectors/postgres/store.ts'
import { silent } from '../../../src/logger.ts'
import type { Barrier, Chunk, Position } from '../../../src/model.ts'
import { advance, batch, group } from '../../conformance/sink.ts'
import { imagesOf } from '../../support/images.ts'
import { needs } from '../../support/servers.ts'
import { at, bench, never } from './sink-server.ts'

describe('a target that forgets what it was not told to keep', needs('pg'), () => {
  for (const setting of ['off', 'on']) {
    it(`H33: only batches of rows may be lost with a crash, where synchronous_commit is ${setting}`, async () => {
      await using target = await bench(`
        create table public.t (id int primary key, name text);
        create table public.x (id int);
        create table public.commits (what text, setting text);
        create function public.note() returns trigger language plpgsql as $$
          declare was jsonb := to_jsonb(old); now jsonb := to_jsonb(new); what text := tg_table_name; begin
          if tg_op = 'UPDATE' and what = 'checkpoint' then
            what := what || case when now ->> 'claim' <> was ->> 'claim' then ' claim'
              when now ->> 'hold' is distinct from was ->> 'hold' or now ->> 'loose' <> was ->> 'loose' then ' hold' else ' rows' end;
          end if;
          insert into public.commits values (what, current_setting('synchronous_commit'));
          return null; end $$;
        do $$ begin execute format('alter database %I set synchronous_commit = ${setting}', current_database()); end $$`)
      for (const table of ['checkpoint', 'copy', 'chunk', 'barrier', 'arrival', 'state'])
        await target.sql(
          `create trigger note after insert or update on crossfade.${table} for each row execute function public.note();
           alter table crossfade.${table} enable always trigger note`,
        )
      await target.sql(`create trigger note after insert or update on public.t for each row execute function public.note();
           alter table public.t enable always trigger note`)
      const schema = await target.schema('t')
      const { sink } = target
      const copy = { table: schema.table, partitions: [{ topic: 'u', partition: 0 }], live: false }
      const snapshot = '0000000000000001' as Position
      await sink.setCopies([{ ...copy, snapshot }], 1, never)
      await using lane = await sink.lane(never)
      const [from] = await lane.claim([at], 1, never)
      assert.ok(from)
      const chunk: Chunk = { id: 'c', table: schema.table, estimatedRows: 1, snapshot, replace: false }
      const batches = (async function* () {
        yield imagesOf(schema, [['2', 'copied']])
      })()
      await lane.load(schema, chunk, { kind: 'rows', batches }, 1, never)
      const copied = await target.sql<{ setting: string }>(
        `delete from public.commits where what = 't' returning setting`,
      )
      assert.deepEqual(copied, [{ setting: 'on' }])
      const step = advance(from)
      assert.deepEqual(await lane.apply(batch([group(schema, 'upsert', [['1', 'one']])]), [step], never), [])
      const barrier: Barrier = {
        kind: 'barrier',
        mark: { position: '0000000000000009' as Position, seq: 0 },
        committedAt: 0,
        epoch: 1,
        partitions: [at],
        effect: { kind: 'truncate', tables: [{ schema: 'public', name: 'x' }], cascade: false, restartCounters: false },
      }
      const before = await target.sql('select from public.commits')
      assert.equal(await lane.arrive(barrier, advance(step.to, 1, barrier.mark.position), never), 'done')
      const arrived = await target.sql<{ setting: string }>(
        `select setting from public.commits offset ${before.length}`,
      )
      assert.ok(arrived.length >= 3 && arrived.every((row) => row.setting === 'on'), JSON.stringify(arrived))
      await sink.setCopies([{ ...copy, snapshot, live: true }], 1, never)
      await using store = await openStore(
        parse({ url: target.url }),
        { pipeline: 'p', dir: '/nowhere', log: silent },
        never,
      )
      assert.equal(await store.put('lease/capture', { owner: 'me' }, 0, never), 1)
      assert.equal(await store.put('lease/capture', { owner: 'me' }, 1, never), 2)
      const all = await target.sql<{ what: string; setting: string }>(
        `select distinct what, setting from (select * from public.commits limit ${before.length}) x
          union select what, setting from public.commits where what in ('copy', 'state', 'checkpoint hold') order by 1, 2`,
      )
      assert.deepEqual(
        all.map(({ what, setting }) => `${what}: ${setting}`),
        [
          'checkpoint: on',
          'checkpoint claim: on',
          'checkpoint hold: on',
          'checkpoint rows: off',
          'chunk: on',
          'copy: on',
          'state: on',
          't: off',
        ],
      )
    })
  }
})
