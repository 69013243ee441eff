import { sql } from './postgres.ts'
import { scene, type Scene } from './scene.ts'
import { postgres } from './servers.ts'

/** Partitions below partitions, a default one, and leaves whose columns stand in another order behind dropped ones. */
const ddl = `
create table sales (region text not null, id int not null, amount numeric, note text, primary key (region, id)) partition by list (region);
create table north partition of sales for values in ('north') partition by range (id);
create table north_low partition of north for values from (minvalue) to (100);
create table north_high (gone int, note text, amount numeric, also_gone text, id int not null, region text not null);
alter table north_high drop column gone, drop column also_gone;
alter table north_high alter note set storage external;
alter table north attach partition north_high for values from (100) to (maxvalue);
create table south (id int not null, region text not null, note text, amount numeric);
alter table sales attach partition south for values in ('south');
create table rest partition of sales default;
create table plain (id int primary key);
insert into sales select (array['north', 'south', 'east', 'west'])[1 + i % 4], i, i / 3.0, case when i % 10 = 0 then repeat('n', 3000) else 'n' end from generate_series(1, 200) i;
insert into plain values (1);
`
export const leaves: readonly string[] = ['north_low', 'north_high', 'south', 'rest']
/** Rows that move between leaves and back, and truncates of some. */
export const salesStatements: readonly string[] = [
  `update sales set region = 'south' where id in (3, 5, 150)`,
  `update sales set region = 'north' where id in (5, 20, 160)`,
  `update sales set region = 'nowhere', note = 'moved' where id = 40`,
  `update sales set id = id + 1000 where region = 'north' and id < 100 and id % 3 = 0 and id > 95`,
  `begin; update sales set region = 'south' where id = 60; update sales set region = 'rest' where id = 60; update sales set region = 'north' where id = 60; update sales set amount = 1.50 where id = 60; commit`,
  `delete from sales where id between 70 and 75`,
  `insert into sales values ('north', 70, 1.0, 'again'), ('south', 71, 2, null), ('x', 72, null, repeat('z', 5000))`,
  `begin; truncate north; insert into sales values ('north', 1, 1, 'first'), ('north', 500, 5, 'second'); commit`,
  `truncate rest, south; insert into sales values ('south', 1, 1, 's')`,
]

/** Both databases and a pipeline between them. */
export async function sales(options: Partial<Parameters<typeof scene>[0]>): Promise<Scene> {
  const pg = await postgres(18)
  const [source, target] = [await pg.database('parts_source'), await pg.database('parts_target')]
  await sql(source, ddl)
  return await scene({ source, target, mode: 'hybrid', ...options })
}
/** Ordinary tables in schema public, by name. */
export const tablesOf = async (url: string): Promise<readonly string[]> =>
  (
    await sql<{ name: string }>(
      url,
      `select relname as name from pg_class c where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1`,
    )
  ).map(({ name }) => name)
