import assert from 'node:assert/strict'
import { before, describe, it } from 'node:test'
import { checkSource } from '../../../connectors/postgres/check.ts'
import { parse } from '../../../connectors/postgres/config.ts'
import { applyDdl, readDdl } from '../../../connectors/postgres/ddl.ts'
import { readCatalog, tableSchema } from '../../../connectors/postgres/schema.ts'
import type { Finding } from '../../../src/connector.ts'
import { sql } from '../../support/postgres.ts'
import { needs, postgres } from '../../support/servers.ts'
import { connected } from '../../support/shop.ts'
import { createTypes, createTypeTable, typeColumns } from '../../support/type-tables.ts'
import { unwritable } from '../../support/type-values.ts'
import { never } from './sink-server.ts'

/** Ranges with all that decides what their values are. */
const ranges = `select format('%I.%I %I.%I', n.nspname, t.typname, mn.nspname, m.typname) as range, format_type(r.rngsubtype, -1) as subtype,
  r.rngcollation::regcollation::text as collation, o.opcname as opclass, r.rngsubdiff::regproc::text as diff
  from pg_range r join pg_type t on t.oid = r.rngtypid join pg_namespace n on n.oid = t.typnamespace
  join pg_type m on m.oid = r.rngmultitypid join pg_namespace mn on mn.oid = m.typnamespace join pg_opclass o on o.oid = r.rngsubopc
 where t.oid >= 16384 order by 1`

for (const version of [18, 14] as const)
  describe(`types of version ${version}`, needs(version === 18 ? 'pg' : 'pg14', 'pg'), () => {
    let source = ''
    before(async () => {
      source = await (await postgres(version)).database('definitions')
      await createTypes(source)
    })

    async function schemas(name: string): Promise<ReturnType<typeof tableSchema>[]> {
      await using client = await connected(source)
      return (await readCatalog(client, (id) => id.name === name)).map((table) => tableSchema(table, 1))
    }
    async function check(client: Awaited<ReturnType<typeof connected>>): Promise<readonly Finding[]> {
      return await checkSource(client, (id) => id.schema === 'refused', 'p')
    }

    it('are made at the target as they are at the source, except those that need functions', async () => {
      const target = await (await postgres(18)).database('definitions')
      // Written in another language, and rows of tables.
      const left = ['raw', 'three', 'thing', 'Odd "Table".x', 'a.b']
      const columns = (await typeColumns(source)).filter(({ name }) => !left.includes(name))
      await createTypeTable(source, 'every', columns)
      const ddl = await readDdl(parse({ url: source }), await schemas('every'), 'tables', never)
      await applyDdl(parse({ url: target }), ddl, 'before', never)
      assert.deepEqual(await sql(target, ranges), await sql(source, ranges))
      const types = `select string_agg(format('%s %s', attname, format_type(atttypid, atttypmod)), ', ' order by attnum) as types
        from pg_attribute where attrelid = 'every'::regclass and attnum > 0`
      assert.deepEqual(await sql(target, types), await sql(source, types))
    })

    if (version !== 18) return
    it('whose values no server reads are refused by name, however deep they stand, and rows of the catalog too', async () => {
      await sql(source, `create schema refused; create table refused.t (id int primary key)`)
      await using client = await connected(source)
      const add = async (name: string, type: string): Promise<boolean> =>
        await client.query(`alter table refused.t add "${name}" ${type}`).then(
          () => true,
          (error: unknown) => {
            // A column cannot have a pseudo-type, nor a row with one.
            assert.match(String(error), /pseudo-type/)
            return false
          },
        )
      for (const type of unwritable) assert.ok(await add(type, type))
      await client.query(
        `create type public.deep as (a int, b pg_catalog.gtsvector[]); create domain public.deeper as public.deep`,
      )
      assert.ok(await add('deep', 'public.deeper[]'))
      const rows = await client.query<{ name: string; type: string }>(
        `select n.nspname || '.' || typname as name, format_type(t.oid, null) as type from pg_type t join pg_namespace n on n.oid = t.typnamespace
          where t.typtype = 'c' and t.typrelid < 16384 and t.typname < 'pg_stat' and n.nspname in ('pg_catalog', 'information_schema') order by 1`,
      )
      let added = unwritable.length + 1
      for (const { name, type } of rows.rows) if (await add(name, type)) added++
      assert.ok(added > 100, `${added} columns`)
      const found = (await check(client)).filter(({ id }) => id === 'source.type')
      assert.equal(found.length, added)
      assert.deepEqual(new Set(found.map(({ level }) => level)), new Set(['blocker']))
      assert.match(
        found[0]?.observed ?? '',
        /refused\.t\.pg_node_tree holds pg_node_tree, of which a server reads no value/,
      )
      const some = found.slice(0, unwritable.length + 3)
      await client.query(some.map(({ remedy }) => remedy?.replace(/ --.*/, '')).join('\n'))
      const left = (await check(client)).filter(({ id }) => id === 'source.type')
      assert.deepEqual(
        left.map(({ observed }) => observed),
        found.slice(some.length).map(({ observed }) => observed),
      )
    })
  })
