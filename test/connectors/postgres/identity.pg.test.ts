import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { imagesOf, type Value } from '../../support/images.ts'
import { needs } from '../../support/servers.ts'
import { advance, batch, group, inOrder } from '../../conformance/sink.ts'
import type { Barrier } from '../../../src/model.ts'
import { at, bench, never } from './sink-server.ts'

describe('identities that are always generated', needs('pg'), () => {
  const ddl = `
    create table public.by_id (id bigint generated always as identity primary key, a text, n int unique, twice int generated always as (n * 2) stored, extra text default 'x');
    create table public.beside (k text primary key, a text, id int generated always as identity, b text, twice int generated always as (id * 2) stored);
    create table public.keyless (a text, id int generated always as identity, twice int generated always as (id * 2) stored, extra text default 'x');
    alter table public.keyless replica identity full`

  it('beside the key, takes the source’s value in updates and upserts too', async () => {
    await using target = await bench(ddl)
    const schema = await target.schema('beside')
    const rows = async (): Promise<unknown> =>
      (await target.sql('select k, a, id, b, twice from public.beside order by k')).map((row) => Object.values(row))
    let step = advance(target.from)
    const apply = async (...groups: ReturnType<typeof group>[]): Promise<void> => {
      assert.deepEqual(await target.lane.apply(batch(groups), [step], never), [])
      step = advance(step.to)
    }
    const first = [
      ['k1', 'a', '100', 'b'],
      ['k2', 'a', '200', 'b'],
    ]
    await apply(group(schema, 'upsert', first))
    // Deleted and inserted again, in one batch; one of the rows is new.
    const second = [
      ['k2', 'A', '201', null],
      ['k3', 'A', '300', 'b'],
    ]
    await apply(group(schema, 'upsert', second))
    assert.deepEqual(await rows(), [
      ['k1', 'a', 100, 'b', 200],
      ['k2', 'A', 201, null, 402],
      ['k3', 'A', 300, 'b', 600],
    ])
    await apply(group(schema, 'update', [['k1', undefined, '101', 'B'], ['k3', undefined, '300', 'C']])) // prettier-ignore
    await apply(group(schema, 'update', [['k2', 'gone', '201', undefined], ['nobody', 'x', '1', undefined]], true)) // prettier-ignore
    assert.deepEqual(await rows(), [
      ['k1', 'a', 101, 'B', 202],
      ['k2', 'gone', 201, null, 402],
      ['k3', 'A', 300, 'C', 600],
    ])
    const nobody = ['nobody', undefined, '1', 'B']
    const lost = batch([group(schema, 'update', [nobody])], [{ schema, op: 'update', next: nobody }])
    await assert.rejects(target.lane.apply(lost, [step], never), { code: 'TARGET_DRIFTED' })
  })

  it('without a key, takes the source’s value in updates', async () => {
    await using target = await bench(ddl)
    const schema = await target.schema('keyless')
    const source = { ...schema, columns: schema.columns.filter(({ name }) => name !== 'extra') }
    const write = inOrder([
      { schema: source, op: 'insert', next: ['a', '5'] },
      { schema: source, op: 'insert', next: ['a', '5'] },
      { schema: source, op: 'update', old: ['a', '5'], next: ['b', '6'] },
    ])
    assert.deepEqual(await target.lane.apply(write, [advance(target.from)], never), [])
    const rows = await target.sql('select a, id, twice, extra from public.keyless order by id')
    assert.deepEqual(
      rows.map((row) => Object.values(row)),
      [
        ['a', 5, 10, 'x'],
        ['b', 6, 12, 'x'],
      ],
    )
  })

  it('in the key, moves a row whose new image has absent cells', async () => {
    await using target = await bench(ddl)
    const schema = { ...(await target.schema('by_id')) }
    const columns = schema.columns.filter(({ name }) => name !== 'extra')
    const source = { ...schema, columns }
    let step = advance(target.from)
    const start = [
      ['1', 'large', '10'],
      ['2', 'old', '20'],
      ['3', 'already', '30'],
    ]
    assert.deepEqual(await target.lane.apply(batch([group(source, 'upsert', start)]), [step], never), [])
    await target.sql(`update public.by_id set extra = 'kept' where id = 1`)
    const move = async (oldKey: Value[], next: Value[]): Promise<string> => {
      step = advance(step.to)
      const image = (values: Value[]): Uint8Array => imagesOf(source, [values]).bytes
      const effect = { kind: 'rekey', schema: source, oldKey: image(oldKey), newImage: image(next) } as const
      const here: Barrier = { kind: 'barrier', committedAt: 0, epoch: 1, mark: step.to.mark, effect, partitions: [at] }
      return await target.lane.arrive(here, step, never)
    }
    assert.equal(await move(['1', null, null], ['1001', undefined, '10']), 'done')
    // A row is there under the new key: that one is it.
    assert.equal(await move(['2', null, null], ['3', undefined, '31']), 'done')
    const rows = await target.sql('select id::int, a, n, twice, extra from public.by_id order by id')
    assert.deepEqual(
      rows.map((row) => Object.values(row)),
      [
        [3, 'already', 31, 62, 'x'],
        [1001, 'large', 10, 20, 'kept'],
      ],
    )
    await assert.rejects(move(['50', null, null], ['51', undefined, '1']), { code: 'TARGET_DRIFTED' })
  })
})
