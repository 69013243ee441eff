import assert from 'node:assert/strict'
import { suite, test } from 'node:test'
import { needs, postgres } from '../../support/servers.ts'
import { readToMessage, streamBed } from '../../support/pg-stream.ts'
import { comparePositions, type Position } from '../../../src/model.ts'

for (const version of [18, 14] as const) {
  const need = version === 18 ? 'pg' : 'pg14'
  suite(`a change stream of PostgreSQL ${version}`, needs(need), () => {
    test('brings inserts, updates, deletes, truncates and messages in commit order with their marks', async () => {
      const server = await postgres(version)
      await using bed = await streamBed(
        await server.database('stream'),
        `create table a (id int primary key, name text, big text);
         alter table a alter big set storage external;
         create table f (x int, y text, z text); alter table f replica identity full; alter table f alter z set storage external`,
      )
      const slot = await bed.slot()
      await bed.client.query("insert into a values (1, 'one', repeat('x', 10000)), (2, null, '')")
      await bed.client.query(
        "begin; update a set name = 'uno' where id = 1; update a set id = 3 where id = 2; delete from a where id = 3; commit",
      )
      await bed.client.query("insert into f values (1, 'é', repeat('z', 10000))")
      await bed.client.query('update f set x = 2')
      await bed.client.query(
        "begin; insert into a values (9, 'nine'); truncate a, f restart identity; insert into a values (10, 'ten'); commit",
      )
      await bed.client.query("select pg_logical_emit_message(true, 'p', 'in')")
      await bed.client.query("select pg_logical_emit_message(false, 'p', 'end')")
      await using stream = await bed.open(slot)
      const all = await readToMessage(stream, 'end')
      const long = 'x'.repeat(10000)
      const z = 'z'.repeat(10000)
      const seen = all.map((flat) =>
        flat.kind === 'change'
          ? [flat.seq, flat.table, flat.op, flat.old, flat.new]
          : flat.kind === 'effect'
            ? [flat.seq, flat.effect]
            : [flat.prefix, flat.content],
      )
      const truncate = {
        kind: 'truncate',
        tables: [
          { schema: 'public', name: 'a' },
          { schema: 'public', name: 'f' },
        ],
        cascade: false,
        restartCounters: true,
      }
      assert.deepEqual(seen, [
        [0, 'public.a', 0, [], ['1', 'one', long]],
        [4, 'public.a', 0, [], ['2', null, '']],
        [0, 'public.a', 1, [], ['1', 'uno', undefined]],
        [4, 'public.a', 1, ['2', null, null], ['3', null, '']],
        [8, 'public.a', 2, ['3', null, null], []],
        [0, 'public.f', 0, [], ['1', 'é', z]],
        [0, 'public.f', 1, ['1', 'é', z], ['2', 'é', z]],
        [0, 'public.a', 0, [], ['9', 'nine', null]],
        [4, truncate],
        [8, 'public.a', 0, [], ['10', 'ten', null]],
        ['p', 'in'],
        ['p', 'end'],
      ])
      const places = all.map(({ position }) => position as Position)
      assert.ok(places.every((place, i) => i === 0 || comparePositions(places[i - 1] ?? place, place) <= 0))
      const change = all.find((flat) => flat.kind === 'change')
      assert.ok(change && Math.abs(change.committedAt - Date.now()) < 60_000)
    })
  })
}
