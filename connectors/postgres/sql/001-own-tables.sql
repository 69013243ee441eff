create table crossfade.checkpoint (
  pipeline text collate "C" not null,
  topic text collate "C" not null,
  part integer not null,
  next_offset bigint not null default 0,
  mark_position text collate "C" not null default '',
  mark_seq bigint not null default 0,
  capture_epoch bigint not null default 0,
  -- Changes after it wait; '': all of them, null: none.
  hold text collate "C",
  -- Changes up to it may miss their row.
  loose text collate "C" not null default '',
  claim text not null default '',
  generation bigint not null default -1,
  -- Who holds the claim, so that a stuck one can be ended.
  backend_pid integer,
  backend_start timestamptz,
  primary key (pipeline, topic, part)
) with (fillfactor = 40);

create table crossfade.copy (
  pipeline text collate "C" not null,
  table_schema text collate "C" not null,
  table_name text collate "C" not null,
  partitions jsonb not null,
  snapshot text collate "C" not null,
  live boolean not null,
  epoch bigint not null,
  primary key (pipeline, table_schema, table_name)
);

create table crossfade.chunk (
  pipeline text collate "C" not null,
  table_schema text collate "C" not null,
  table_name text collate "C" not null,
  id text collate "C" not null,
  -- Of the lease under which it was last begun: only that one may finish it.
  epoch bigint not null,
  backend_pid integer not null,
  backend_start timestamptz not null,
  done boolean not null default false,
  loaded bigint,
  primary key (pipeline, table_schema, table_name, id)
);

create table crossfade.barrier (
  pipeline text collate "C" not null,
  position text collate "C" not null,
  seq bigint not null,
  partitions jsonb not null,
  done boolean not null default false,
  primary key (pipeline, position, seq)
);

create table crossfade.arrival (
  pipeline text collate "C" not null,
  position text collate "C" not null,
  seq bigint not null,
  topic text collate "C" not null,
  part integer not null,
  primary key (pipeline, position, seq, topic, part)
);

create table crossfade.state (
  pipeline text collate "C" not null,
  key text collate "C" not null,
  revision bigint not null,
  value json not null,
  primary key (pipeline, key)
);
