import assert from 'node:assert/strict'
import { test } from 'node:test'
import { connect, parse } from '../../../connectors/postgres/config.ts'
import { tableHistory } from '../../../connectors/postgres/history.ts'
import type { Relation } from '../../../connectors/postgres/pgoutput.ts'
import { firstVersions } from '../../../connectors/postgres/retained.ts'
import { readCatalog, tableSchema } from '../../../connectors/postgres/schema.ts'
import { selectShapes } from '../../../connectors/postgres/source-queries.ts'
import { origin, tableName, type Mark, type Position } from '../../../src/model.ts'
import { needs, postgres } from '../../support/servers.ts'

const never = new AbortController().signal

test(
  'among many tables the first row of each costs a look at that table, and a changed one a look at all',
  needs('pg'),
  async () => {
    const client = await connect(parse({ url: await (await postgres(18)).database('looks') }), { name: 'test' }, never)
    try {
      const names = Array.from({ length: 20 }, (_, i) => `t${i}`)
      for (const name of names) await client.query(`create table public.${name} (id int primary key, name text)`)
      await client.query(`create publication looks for table ${names.map((name) => `public.${name}`).join(', ')}`)
      const schemas = (await readCatalog(client, () => true)).map((table) => tableSchema(table, 1))
      const first = await selectShapes(client, 'looks')
      const looks: (number | undefined)[] = []
      const versions = firstVersions([], schemas, first.tables)
      const history = tableHistory({
        versions,
        left: [],
        after: origin,
        looked: first,
        look: async (_, only) => {
          looks.push(only)
          return await selectShapes(client, 'looks', only)
        },
        keep: async () => {},
        typeName: async () => 'text',
        digest: async () => undefined,
        record: async (fresh) => [...versions, ...fresh],
      })
      let marks = 0
      let rows = 0
      const write = async (name: string): Promise<number> => {
        const { rows: written } = await client.query<{ xid: string }>(
          `insert into public.${name} values (${++rows}) returning xmin::text as xid`,
        )
        return Number(written[0]?.xid)
      }
      const asked = async (name: string, columns = ['id', 'name']): Promise<unknown> => {
        const oid = first.tables.find((table) => tableName(table) === `public.${name}`)?.oid ?? 0
        const key = columns.map((column) => ({
          name: column,
          typeOid: column === 'id' ? 23 : 25,
          typmod: -1,
          key: column === 'id',
        }))
        const relation: Relation = { oid, table: { schema: 'public', name }, identity: 'default', columns: key }
        const xid = await write(name)
        const mark: Mark = { position: String(++marks).padStart(16, '0') as Position, seq: 0 }
        assert.equal(history.at(relation, mark, xid), undefined, 'its transaction is newer than the last look')
        await history.settle(never)
        return history.at(relation, mark, xid)
      }
      for (const name of names)
        assert.equal(
          await asked(name),
          schemas.find(({ table }) => table.name === name),
        )
      assert.deepEqual(new Set(looks), new Set(first.tables.map(({ oid }) => oid)), 'each table by itself, none twice')
      assert.equal(looks.length, names.length)
      await client.query('alter table public.t7 add more text')
      looks.length = 0
      const effect = await asked('t7', ['id', 'name', 'more'])
      assert.ok(effect !== null && typeof effect === 'object' && 'kind' in effect && effect.kind === 'schema')
      assert.equal(looks.filter((only) => only === undefined).length, 1)
    } finally {
      await client.end()
    }
  },
)
