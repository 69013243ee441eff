-- Of a live table, whose chunks are forgotten.
alter table crossfade.copy add column rows bigint;

update crossfade.copy c set rows = k.rows
  from (select pipeline, table_schema, table_name, sum(loaded) as rows from crossfade.chunk where done group by 1, 2, 3) k
 where c.live and k.pipeline = c.pipeline and k.table_schema = c.table_schema and k.table_name = c.table_name;

delete from crossfade.chunk k using crossfade.copy c
 where c.live and k.pipeline = c.pipeline and k.table_schema = c.table_schema and k.table_name = c.table_name;
