import { sql } from './postgres.ts'
import { connected } from './shop.ts'

/** Writes to `thing` as fast as one client does, naming the key alone, so that its other columns may change. */
export interface Writing extends AsyncDisposable {
  readonly count: () => number
  stop(): Promise<void>
}
export async function keepWriting(url: string, first = 100_000): Promise<Writing> {
  const client = await connected(url)
  let stopped = false
  let count = 0
  const loop = (async () => {
    for (let id = first; !stopped; id += 2) {
      await client.query(`insert into thing (id) values (${id}), (${id + 1})`)
      if (count % 3 === 0) await client.query(`update thing set id = id + 1000000 where id = ${id}`)
      if (count % 4 === 0) await client.query(`delete from thing where id = ${id + 1}`)
      count++
    }
  })()
  loop.catch(() => {})
  let ended = false
  const stop = async (): Promise<void> => {
    if (ended) return
    ended = true
    stopped = true
    try {
      await loop
    } finally {
      await client.end()
    }
  }
  return { count: () => count, stop, [Symbol.asyncDispose]: stop }
}

/** What a table's definition is at the target too: names, types, order, NOT NULL, defaults, expressions. */
export async function definition(url: string, table = 'thing'): Promise<readonly unknown[]> {
  return await sql(
    url,
    `select a.attname, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull, a.attgenerated, c.collname,
            pg_get_expr(d.adbin, d.adrelid) as expression
       from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
       left join pg_collation c on c.oid = a.attcollation
      where a.attrelid = $1::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum`,
    [table],
  )
}

/** Contents equal and definitions too: for `until`. */
export async function definitionDiffers(source: string, target: string): Promise<readonly string[]> {
  const [from, to] = [JSON.stringify(await definition(source)), JSON.stringify(await definition(target))]
  return from === to ? [] : [`source ${from}`, `target ${to}`]
}
