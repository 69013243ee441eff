import { readFile, readdir } from 'node:fs/promises'
import type { ClientBase } from 'pg'
import { failpoint } from '../../src/failpoint.ts'
import {
  partitionName,
  type Barrier,
  type Chunk,
  type Checkpoint,
  type Epoch,
  type Position,
  type TableCopy,
  type TableId,
  type TopicPartition,
  type CopyState,
  type Start,
} from '../../src/model.ts'

const folder = new URL('sql/', import.meta.url)

/** Brings schema crossfade to the newest of the numbered files beside us, in one transaction; several may try at once. */
export async function migrate(client: ClientBase): Promise<void> {
  const files = (await readdir(folder)).filter((name) => /^\d{3}-.*\.sql$/.test(name)).toSorted()
  const newest = Number(files.at(-1)?.slice(0, 3))
  if ((await migrated(client)) >= newest) return
  await client.query('begin')
  try {
    await client.query(`select pg_advisory_xact_lock(hashtextextended('crossfade migrations', 0))`)
    if ((await migrated(client)) < 0) {
      await client.query('create schema if not exists crossfade')
      await client.query(
        'create table crossfade.migration (number integer primary key, applied_at timestamptz not null default now())',
      )
    }
    const done = await migrated(client)
    for (const name of files) {
      const number = Number(name.slice(0, 3))
      if (number <= done) continue
      await client.query(await readFile(new URL(name, folder), 'utf8'))
      await client.query('insert into crossfade.migration (number) values ($1)', [number])
    }
    failpoint('own-tables.before-commit')
    await client.query('commit')
  } catch (error) {
    await client.query('rollback').catch(() => {})
    throw error
  }
}

/** Number of the newest migration applied; -1 without own tables. */
async function migrated(client: ClientBase): Promise<number> {
  const { rows } = await client.query<{ there: boolean }>(
    // Read from the catalog itself: within a transaction a name that was missing before the lock stays missing in the session's cache.
    `select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                     where n.nspname = 'crossfade' and c.relname = 'migration') as there`,
  )
  if (rows[0]?.there !== true) return -1
  const { rows: found } = await client.query<{ number: number }>(
    'select coalesce(max(number), 0) as number from crossfade.migration',
  )
  return found[0]?.number ?? 0
}

type CheckpointRow = {
  topic: string
  part: number
  next_offset: string
  mark_position: string
  mark_seq: string
  capture_epoch: string
  claim: string
  hold: string | null
  loose: string
}
const checkpointColumns = 'topic, part, next_offset, mark_position, mark_seq, capture_epoch, claim, hold, loose'

function checkpointOf(row: CheckpointRow): Checkpoint {
  return {
    topic: row.topic,
    partition: row.part,
    offset: Number(row.next_offset),
    mark: { position: row.mark_position as Position, seq: Number(row.mark_seq) },
    captureEpoch: Number(row.capture_epoch),
    claim: row.claim,
    ...(row.hold === null ? {} : { hold: row.hold as Position }),
    loose: row.loose as Position,
  }
}

/** All of the pipeline, in partition order. */
export async function selectCheckpoints(client: ClientBase, pipeline: string): Promise<readonly Checkpoint[]> {
  const { rows } = await client.query<CheckpointRow>(
    `select ${checkpointColumns} from crossfade.checkpoint where pipeline = $1 order by topic, part`,
    [pipeline],
  )
  return rows.map(checkpointOf)
}

/** Those of `partitions` that exist, locked in partition order where `lock` says so. */
export async function selectPartitions(
  client: ClientBase,
  pipeline: string,
  partitions: readonly TopicPartition[],
  lock: boolean,
): Promise<readonly Checkpoint[]> {
  const { rows } = await client.query<CheckpointRow>(
    `select ${checkpointColumns} from crossfade.checkpoint
      where pipeline = $1 and (topic, part) in (select t, p from unnest($2::text[], $3::int[]) u (t, p))
      order by topic, part ${lock ? 'for no key update' : ''}`,
    [pipeline, ...split(partitions)],
  )
  return rows.map(checkpointOf)
}

function split(partitions: readonly TopicPartition[]): [string[], number[]] {
  return [partitions.map(({ topic }) => topic), partitions.map(({ partition }) => partition)]
}

/** Creates those that are missing, everything held: at the start of the log, or where `start` says. */
export async function insertCheckpoints(
  client: ClientBase,
  pipeline: string,
  partitions: readonly TopicPartition[],
  start?: Start,
): Promise<void> {
  const offsets = new Map(start?.ends.map((end) => [partitionName(end), end.offset]))
  await client.query(
    `insert into crossfade.checkpoint (pipeline, topic, part, next_offset, mark_position, mark_seq, capture_epoch, hold)
     select $1, t, p, n, $5, $6, $7, '' from unnest($2::text[], $3::int[], $4::bigint[]) u (t, p, n) order by t, p on conflict do nothing`,
    [
      pipeline,
      ...split(partitions),
      partitions.map((at) => offsets.get(partitionName(at)) ?? 0),
      start?.position ?? '',
      start === undefined ? 0 : Number.MAX_SAFE_INTEGER,
      start?.epoch ?? 0,
    ],
  )
}

/** Of these tables those that have a copy: what is left out is none of ours. */
export async function selectOwn(
  client: ClientBase,
  pipeline: string,
  tables: readonly TableId[],
): Promise<readonly TableId[]> {
  const { rows } = await client.query<TableId>(
    `select table_schema as schema, table_name as name from crossfade.copy
      where pipeline = $1 and (table_schema, table_name) in (select s, n from unnest($2::text[], $3::text[]) u (s, n))`,
    [pipeline, tables.map(({ schema }) => schema), tables.map(({ name }) => name)],
  )
  return rows
}

/** Locks the rows in partition order, then writes the claim into them; resolves to how many let it: a row of a higher generation does not. */
export async function updateClaims(
  client: ClientBase,
  pipeline: string,
  partitions: readonly TopicPartition[],
  generation: number,
  claim: string,
): Promise<number> {
  await selectPartitions(client, pipeline, partitions, true)
  const { rowCount } = await client.query(
    `update crossfade.checkpoint
        set claim = $4, generation = $5, backend_pid = pg_backend_pid(),
            backend_start = (select backend_start from pg_stat_activity where pid = pg_backend_pid())
      where pipeline = $1 and (topic, part) in (select t, p from unnest($2::text[], $3::int[]) u (t, p))
        and generation <= $5`,
    [pipeline, ...split(partitions), claim, generation],
  )
  return rowCount ?? 0
}

/** Ends the sessions that hold these partitions, if they are still those that were recorded, and resolves to how many. */
export async function terminateHolders(
  client: ClientBase,
  pipeline: string,
  partitions: readonly TopicPartition[],
): Promise<number> {
  const { rowCount } = await client.query(
    `select pg_terminate_backend(a.pid)
       from (select distinct backend_pid, backend_start from crossfade.checkpoint
              where pipeline = $1 and (topic, part) in (select t, p from unnest($2::text[], $3::int[]) u (t, p))) c
       join pg_stat_activity a on a.pid = c.backend_pid and a.backend_start = c.backend_start
      where a.pid <> pg_backend_pid()`,
    [pipeline, ...split(partitions)],
  )
  return rowCount ?? 0
}

/** The guarded checkpoint: locks the rows in partition order, demands of each what its advance expects, writes the new ones; division by zero
 *  unless all were as expected. $1 pipeline, $2 the steps as JSON, $3 their number. */
export const guard = `with step as materialized (
  select * from jsonb_to_recordset($2::jsonb) as s (t text, p int, f bigint, n bigint, m text, s bigint, e bigint, c text, h text, l text)
), locked as materialized (
  select c.topic, c.part from crossfade.checkpoint c join step s on c.topic = s.t and c.part = s.p
   where c.pipeline = $1 order by c.topic, c.part for no key update of c
), moved as (
  update crossfade.checkpoint c
     set next_offset = s.n, mark_position = s.m, mark_seq = s.s, capture_epoch = s.e
    from locked l join step s on l.topic = s.t and l.part = s.p
   where c.pipeline = $1 and c.topic = l.topic and c.part = l.part
     and c.claim = s.c and c.next_offset = s.f and c.hold is not distinct from s.h and c.loose = s.l
  returning 1
)
select 1 / (count(*) = $3::int)::int from moved`
export const guardTypes: readonly number[] = [25, 25, 25]

/** Sets hold and loose of the partitions of these copies, locked in partition order. */
export async function updateHolds(client: ClientBase, pipeline: string, copies: readonly TableCopy[]): Promise<void> {
  const all = copies.flatMap(({ partitions, snapshot, live }) => partitions.map((at) => ({ ...at, snapshot, live })))
  await selectPartitions(client, pipeline, all, true)
  await client.query(
    `update crossfade.checkpoint c
        set hold = u.hold, loose = case when split_part(c.loose, '|', 1) < split_part(u.loose, '|', 1) then u.loose else c.loose end
       from unnest($2::text[], $3::int[], $4::text[], $5::text[]) u (topic, part, hold, loose)
      where c.pipeline = $1 and c.topic = u.topic and c.part = u.part`,
    [
      pipeline,
      ...split(all),
      all.map(({ snapshot, live }) => (live ? null : snapshot)),
      all.map(({ snapshot }) => snapshot),
    ],
  )
}

/** Resolves to those that were written: the others are of a higher epoch. */
export async function upsertCopies(
  client: ClientBase,
  pipeline: string,
  copies: readonly TableCopy[],
  epoch: Epoch,
): Promise<readonly TableId[]> {
  const given = JSON.stringify(copies)
  const columns = `jsonb_to_recordset($2::jsonb) as g ("table" jsonb, partitions jsonb, snapshot text, live boolean, rows bigint)`
  // A copy that begins anew knows nothing of the last one's chunks; once it is live nobody asks for them, and no load of one succeeds. Who was on a
  // chunk under another snapshot is forgotten: leases of chunks begin anew with each driver of a copy.
  await client.query(
    `with known as materialized (
       select c.table_schema, c.table_name, c.live or g.live as forgets, c.snapshot <> g.snapshot as moves
         from crossfade.copy c join ${columns} on c.table_schema = g."table" ->> 'schema' and c.table_name = g."table" ->> 'name'
        where c.pipeline = $1 and c.epoch <= $3 order by c.table_schema, c.table_name for update of c
     )
     delete from crossfade.chunk k using known c
      where (c.forgets or c.moves and not k.done) and k.pipeline = $1 and k.table_schema = c.table_schema and k.table_name = c.table_name`,
    [pipeline, given, epoch],
  )
  const { rows } = await client.query<TableId>(
    `insert into crossfade.copy as c (pipeline, table_schema, table_name, partitions, snapshot, live, epoch, rows)
     select $1, g."table" ->> 'schema', g."table" ->> 'name', g.partitions, g.snapshot, g.live, $3, g.rows from ${columns} order by 2, 3
     on conflict (pipeline, table_schema, table_name)
     do update set partitions = excluded.partitions, snapshot = excluded.snapshot, live = excluded.live,
                   epoch = excluded.epoch, rows = excluded.rows
      where c.epoch <= excluded.epoch
     returning table_schema as schema, table_name as name`,
    [pipeline, given, epoch],
  )
  return rows
}

/** Also before the newest migration: for a status. */
export async function selectCopies(client: ClientBase, pipeline: string): Promise<readonly CopyState[]> {
  const { rows } = await client.query<Omit<CopyState, 'rows'> & { readonly rows: number | null }>(
    `select json_build_object('schema', c.table_schema, 'name', c.table_name) as table, c.partitions, c.snapshot, c.live,
            (to_jsonb(c) ->> 'rows')::float8 as rows, k.done, k.loaded
       from crossfade.copy c,
            lateral (select coalesce(array_agg(k.id order by k.id), '{}') as done,
                            coalesce(array_agg(coalesce(k.loaded, 0)::float8 order by k.id), '{}') as loaded
                       from crossfade.chunk k
                      where k.pipeline = c.pipeline and k.table_schema = c.table_schema and k.table_name = c.table_name
                        and k.done) k
      where c.pipeline = $1 order by c.table_schema, c.table_name`,
    [pipeline],
  )
  return rows.map(({ rows, ...copy }) => (rows === null ? copy : { ...copy, rows }))
}

/** Snapshot of a table's copy; with `lock` it cannot change until the transaction ends. */
export async function selectSnapshot(
  client: ClientBase,
  pipeline: string,
  table: TableId,
  lock: boolean,
): Promise<Position | undefined> {
  const { rows } = await client.query<{ snapshot: Position; live: boolean }>(
    `select snapshot, live from crossfade.copy
      where pipeline = $1 and table_schema = $2 and table_name = $3 ${lock ? 'for share' : ''}`,
    [pipeline, table.schema, table.name],
  )
  const row = rows[0]
  return row === undefined || row.live ? undefined : row.snapshot
}

/** Notes who works on a chunk; `done` as it was; undefined: a higher epoch does. `stuck`: sessions that were on it before and still are, now ended. */
export async function beginChunk(
  client: ClientBase,
  pipeline: string,
  chunk: Chunk,
  epoch: Epoch,
): Promise<{ readonly done: boolean } | undefined> {
  const { table, id } = chunk
  await client.query(
    `select pg_terminate_backend(a.pid)
       from crossfade.chunk k join pg_stat_activity a on a.pid = k.backend_pid and a.backend_start = k.backend_start
      where k.pipeline = $1 and k.table_schema = $2 and k.table_name = $3 and k.id = $4
        and not k.done and k.epoch <= $5 and a.pid <> pg_backend_pid()`,
    [pipeline, table.schema, table.name, id, epoch],
  )
  const { rows } = await client.query<{ done: boolean }>(
    `insert into crossfade.chunk as k (pipeline, table_schema, table_name, id, epoch, backend_pid, backend_start)
     select $1, $2, $3, $4, $5, pid, backend_start from pg_stat_activity where pid = pg_backend_pid()
     on conflict (pipeline, table_schema, table_name, id)
     do update set epoch = excluded.epoch, backend_pid = excluded.backend_pid, backend_start = excluded.backend_start
      where k.epoch <= excluded.epoch
     returning done`,
    [pipeline, table.schema, table.name, id, epoch],
  )
  return rows[0]
}

/** Ends the sessions that load chunks for a driver before this epoch's: one that is stopped holds the rows of its table and copy for ever (H18). */
export async function terminateLoads(client: ClientBase, pipeline: string, epoch: Epoch): Promise<void> {
  await client.query(
    `select pg_terminate_backend(a.pid)
       from crossfade.copy c join crossfade.chunk k using (pipeline, table_schema, table_name)
       join pg_stat_activity a on a.pid = k.backend_pid and a.backend_start = k.backend_start
      where c.pipeline = $1 and c.epoch < $2 and not k.done and a.pid <> pg_backend_pid()`,
    [pipeline, epoch],
  )
}

/** False: another has begun it since. */
export async function finishChunk(
  client: ClientBase,
  pipeline: string,
  chunk: Chunk,
  epoch: Epoch,
  loaded: number,
): Promise<boolean> {
  const { rowCount } = await client.query(
    `update crossfade.chunk set done = true, loaded = $6
      where pipeline = $1 and table_schema = $2 and table_name = $3 and id = $4 and epoch = $5 and not done`,
    [pipeline, chunk.table.schema, chunk.table.name, chunk.id, epoch, loaded],
  )
  return rowCount === 1
}

/** Locks the barrier's row, creating it, and counts this partition among the arrivals. */
export async function arriveAt(
  client: ClientBase,
  pipeline: string,
  barrier: Barrier,
  at: TopicPartition,
): Promise<{ readonly done: boolean; readonly arrived: readonly TopicPartition[] }> {
  const id = [pipeline, barrier.mark.position, barrier.mark.seq]
  await client.query(
    `insert into crossfade.barrier (pipeline, position, seq, partitions) values ($1, $2, $3, $4) on conflict do nothing`,
    [...id, JSON.stringify(barrier.partitions)],
  )
  const { rows } = await client.query<{ done: boolean }>(
    'select done from crossfade.barrier where pipeline = $1 and position = $2 and seq = $3 for update',
    id,
  )
  await client.query(
    `insert into crossfade.arrival (pipeline, position, seq, topic, part) values ($1, $2, $3, $4, $5) on conflict do nothing`,
    [...id, at.topic, at.partition],
  )
  const { rows: arrived } = await client.query<{ topic: string; partition: number }>(
    'select topic, part as partition from crossfade.arrival where pipeline = $1 and position = $2 and seq = $3',
    id,
  )
  return { done: rows[0]?.done === true, arrived }
}

/** Marks it done, and forgets those that every partition has passed: a mark never goes back, so nobody asks for them again. */
export async function finishBarrier(client: ClientBase, pipeline: string, barrier: Barrier): Promise<void> {
  await client.query('update crossfade.barrier set done = true where pipeline = $1 and position = $2 and seq = $3', [
    pipeline,
    barrier.mark.position,
    barrier.mark.seq,
  ])
  await client.query(
    `with passed as materialized (
       select b.position, b.seq from crossfade.barrier b
        where b.pipeline = $1 and b.done and not exists (
          select from jsonb_to_recordset(b.partitions) as p (topic text, partition int)
            join crossfade.checkpoint c on c.pipeline = $1 and c.topic = p.topic and c.part = p.partition
           where (split_part(c.mark_position, '|', 1), c.mark_seq) < (split_part(b.position, '|', 1), b.seq))
          for update skip locked
     ), arrived as (
       delete from crossfade.arrival a using passed where a.pipeline = $1 and a.position = passed.position and a.seq = passed.seq
     )
     delete from crossfade.barrier b using passed where b.pipeline = $1 and b.position = passed.position and b.seq = passed.seq`,
    [pipeline],
  )
}

/** Sets each sequence so that `value` comes next; one that is not there is left out. */
export async function setSequences(
  client: ClientBase,
  counters: readonly { readonly name: string; readonly value: bigint }[],
): Promise<void> {
  await client.query(
    `select setval(to_regclass(u.name), u.value, false) from unnest($1::text[], $2::bigint[]) u (name, value)
      where to_regclass(u.name) is not null`,
    [counters.map(({ name }) => name), counters.map(({ value }) => String(value))],
  )
}

export async function deleteStates(client: ClientBase, pipeline: string, prefix: string): Promise<void> {
  await client.query('delete from crossfade.state where pipeline = $1 and starts_with(key, $2)', [pipeline, prefix])
}

type StateRow = { readonly key: string; readonly value: unknown; readonly revision: number }

export async function selectState(client: ClientBase, pipeline: string, key: string): Promise<StateRow | undefined> {
  const { rows } = await client.query<StateRow>(
    `select key, value, revision::float8 as revision from crossfade.state where pipeline = $1 and key = $2`,
    [pipeline, key],
  )
  return rows[0]
}

export async function selectStates(client: ClientBase, pipeline: string, prefix: string): Promise<StateRow[]> {
  const { rows } = await client.query<StateRow>(
    `select key, value, revision::float8 as revision from crossfade.state
      where pipeline = $1 and starts_with(key, $2) order by key`,
    [pipeline, prefix],
  )
  return rows
}

/** The new revision; undefined: the key is there already. */
export async function insertState(
  client: ClientBase,
  pipeline: string,
  key: string,
  json: string,
): Promise<number | undefined> {
  const { rows } = await client.query<{ revision: number }>(
    `insert into crossfade.state (pipeline, key, revision, value) values ($1, $2, 1, $3)
     on conflict do nothing returning revision::float8 as revision`,
    [pipeline, key, json],
  )
  return rows[0]?.revision
}

/** The new revision; undefined: it is no longer the one expected. */
export async function updateState(
  client: ClientBase,
  pipeline: string,
  key: string,
  json: string,
  expected: number,
): Promise<number | undefined> {
  const { rows } = await client.query<{ revision: number }>(
    `update crossfade.state set value = $3, revision = revision + 1
      where pipeline = $1 and key = $2 and revision = $4 returning revision::float8 as revision`,
    [pipeline, key, json, expected],
  )
  return rows[0]?.revision
}

/** Several in one statement; division by zero unless each is as expected. */
export async function writeStates(
  client: ClientBase,
  pipeline: string,
  writes: readonly { readonly key: string; readonly json: string; readonly expected: number }[],
): Promise<void> {
  await client.query(
    `with given as materialized (
       select * from unnest($2::text[], $3::text[], $4::bigint[]) g (key, value, expected) order by key
     ), made as (
       insert into crossfade.state (pipeline, key, revision, value)
       select $1, key, 1, value::json from given where expected = 0 on conflict do nothing returning 1
     ), written as (
       update crossfade.state s set value = g.value::json, revision = s.revision + 1
         from given g where s.pipeline = $1 and s.key = g.key and s.revision = g.expected returning 1
     )
     select 1 / ((select count(*) from made) + (select count(*) from written) = (select count(*) from given))::int`,
    [pipeline, writes.map(({ key }) => key), writes.map(({ json }) => json), writes.map(({ expected }) => expected)],
  )
}
