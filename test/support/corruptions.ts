import { sql } from './postgres.ts'

/** What is done to a row with this number at the target, and what a verification then has to say of it. */
export type Corruption = {
  readonly kind: string
  readonly table: (typeof corruptible)[number]
  readonly statement: (id: number) => string
  readonly told: (id: number) => string
}

/** Tables whose every value follows from the row's number, so that both ends can be made apart from each other. `rows`: of the largest. */
export function corruptibleTables(rows: number): string {
  return `
    create collation if not exists blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create type mood as enum ('sad', 'happy');
    create table item (id bigint primary key, name text, note text, price numeric, ratio float8, doc json, facts jsonb, at timestamptz, mood mood, list int[], code text collate blind);
    insert into item select i, 'item ' || i, null, i * 1.10 + 1.0, 0, '{"a": 1}', '{"n": 1.0}', '2026-01-01Z'::timestamptz + i * interval '1 second', 'sad', array[i, 2], 'Code' || i
      from generate_series(1, ${rows}) i;
    create table named (name text primary key, value int);
    insert into named select 'Name ' || i, i from generate_series(1, ${Math.ceil(rows / 10)}) i;
    create table paired (a int, b text collate "C", value text, primary key (a, b));
    insert into paired select i % 100, 'b' || i, 'value ' || i from generate_series(1, ${Math.ceil(rows / 5)}) i;
    create table loose (a int, b text);
    insert into loose select i / 2, 'b' || i / 2 from generate_series(2, ${Math.ceil(rows / 10) + 1}) i;
    alter table loose replica identity full;
    analyze;
  `
}
export const corruptible = ['item', 'named', 'paired', 'loose'] as const

const item = (kind: string, set: string, column: string): Corruption => ({
  kind,
  table: 'item',
  statement: (id) => `update item set ${set} where id = ${id}`,
  told: (id) => `public.item different ${id} ${column}`,
})
/** The statement of each touches its own row only, or the one after it. */
const itemCorruptions: readonly Corruption[] = [
  {
    kind: 'row deleted',
    table: 'item',
    statement: (id) => `delete from item where id = ${id}`,
    told: (id) => `public.item only source ${id} `,
  },
  {
    kind: 'row added',
    table: 'item',
    statement: (id) => `insert into item (id, name) values (${-id}, 'more')`,
    told: (id) => `public.item only target ${-id} `,
  },
  item('last digit', `name = name || '0'`, 'name'),
  item('digit at the last place', `price = price + 0.01`, 'price'),
  item('NULL against empty', `note = ''`, 'note'),
  {
    kind: 'two rows exchange a value',
    table: 'item',
    statement: (id) =>
      `update item t set name = (select name from item o where o.id = case t.id when ${id} then ${id + 1} else ${id} end) where id in (${id}, ${id + 1})`,
    told: (id) => `public.item different ${id} name\npublic.item different ${id + 1} name`,
  },
  item('trailing space', `name = name || ' '`, 'name'),
  item('1.0 against 1.00', `price = (price::text || '0')::numeric`, 'price'),
  item('-0 against 0', `ratio = '-0'`, 'ratio'),
  item('spacing in json', `doc = '{"a":1}'`, 'doc'),
  item('scale in jsonb', `facts = '{"n": 1.00}'`, 'facts'),
  item('microsecond', `at = at + interval '1 microsecond'`, 'at'),
  item('enum label', `mood = 'happy'`, 'mood'),
  item('array bounds', `list = ('[0:1]=' || list::text)::int[]`, 'list'),
  item('case under a collation that does not see it', `code = lower(code)`, 'code'),
]
export const corruptions: readonly Corruption[] = [
  ...itemCorruptions,
  {
    kind: 'duplicated row without a key',
    table: 'loose',
    statement: (id) => `insert into loose values (${id}, 'b${id}')`,
    told: (id) => `public.loose copies ${id},b${id} 2:3`,
  },
  {
    kind: 'one copy of a row without a key',
    table: 'loose',
    statement: (id) => `delete from loose where ctid = (select ctid from loose where a = ${id} limit 1)`,
    told: (id) => `public.loose copies ${id},b${id} 2:1`,
  },
  {
    kind: 'value under a text key',
    table: 'named',
    statement: (id) => `update named set value = -value where name = 'Name ${id}'`,
    told: (id) => `public.named different Name ${id} value`,
  },
  {
    kind: 'text key in other letters',
    table: 'named',
    statement: (id) => `update named set name = lower(name) where name = 'Name ${id}'`,
    told: (id) => `public.named only source Name ${id} \npublic.named only target name ${id} `,
  },
  {
    kind: 'value under a key of two columns',
    table: 'paired',
    statement: (id) => `update paired set value = upper(value) where a = ${id % 100} and b = 'b${id}'`,
    told: (id) => `public.paired different ${id % 100},b${id} value`,
  },
  {
    kind: 'row under a key of two columns',
    table: 'paired',
    statement: (id) => `delete from paired where a = ${id % 100} and b = 'b${id}'`,
    told: (id) => `public.paired only source ${id % 100},b${id} `,
  },
]

/** Corrupts `count` rows of the target, chosen by `random` in [0, 1), each kind as often as the others, and no row twice. Resolves to what a verification
 *  has to say, sorted. */
export async function corrupt(
  url: string,
  { rows, count, random }: { readonly rows: number; readonly count: number; readonly random: () => number },
): Promise<readonly string[]> {
  const taken = new Set<string>()
  const told: string[] = []
  const statements: string[] = []
  for (let n = 0; n < count; n++) {
    const corruption = corruptions[n % corruptions.length]
    if (corruption === undefined) break
    const { table } = corruption
    const most = table === 'item' ? rows - 1 : Math.floor(rows / 20)
    let id: number
    do id = 1 + Math.floor(random() * most)
    while (taken.has(`${table} ${id}`) || taken.has(`${table} ${id + 1}`) || taken.has(`${table} ${id - 1}`))
    taken.add(`${table} ${id}`)
    statements.push(corruption.statement(id))
    told.push(...corruption.told(id).split('\n'))
  }
  for (let from = 0; from < statements.length; from += 100) await sql(url, statements.slice(from, from + 100).join(';'))
  return told.toSorted()
}
