import { demandKnown } from './apply/known-log.ts'
import { checkBegun, readBegun, writeBegun } from './begun.ts'
import { readTail } from './capture/capture.ts'
import { controlTopic, schemasTopic } from './change-log/topics.ts'
import type { ChangeLog, Topic } from './change-log/change-log.ts'
import type { Finding, Sink, Snapshot, Source } from './connector.ts'
import type { PipelineConfig } from './config/pipeline-config.ts'
import type { Lease } from './coordinate/lease.ts'
import { putAlone, type StateStore } from './coordinate/state-store.ts'
import { asFailure, Failure } from './errors.ts'
import { failpoint } from './failpoint.ts'
import {
  origin,
  tableName,
  type AboutSource,
  type CopyState,
  type Position,
  type TableId,
  type TableSchema,
  type Start,
} from './model.ts'
import type { Parts } from './parts.ts'
import { leaveOut, partitionsOf, registerTables, type Registered } from './registry.ts'

type Setup = {
  readonly tables: readonly Registered[]
  /** The snapshot that came with what the source keeps for us; only the first time, and only where something is to be copied. */
  readonly snapshot: Snapshot | undefined
  /** Where changes begin as long as no watermark says more; the origin: where the source began to keep them. */
  readonly start: Position
}
type SchemaStyle = 'dump' | 'tables' | 'none'

/** Everything before the first byte is copied, in the order that loses nothing: tables recorded, topics, target tables, every table held (H9), and only
 *  then the source told to keep changes. Each step may be repeated. */
export async function setUp(
  parts: Parts,
  { source, sink, store, changeLog }: { source: Source; sink: Sink; store: StateStore; changeLog: ChangeLog },
  { epoch, signal }: Pick<Lease, 'epoch' | 'signal'>,
): Promise<Setup> {
  const { config, filter } = parts
  // What was decided for a start that came to nothing is decided anew: its cause is what the operator has changed since.
  const record = await readBegun(store, signal)
  const begun = record !== undefined
  const startAt = begun ? record.startAt : config.startAt
  const sourceFindings = await source.check(filter, signal, begun ? undefined : startAt)
  const found = await source.tables(filter, signal)
  const types = await source.types?.(found, signal)
  const about = { types }
  const identity = await source.identity?.(signal)
  for (const { id, level, observed, needed } of sourceFindings)
    if (level === 'unknown') parts.log.warn({ id, observed, needed }, 'could not be checked')
    else if (id === 'source.left_out') parts.log.warn({ observed }, 'not copied')
  const logFindings = (await changeLog.check?.(signal)) ?? []
  blockUnless([
    ...sourceFindings,
    ...logFindings,
    ...(begun
      ? await checkBegun(config, record, { store, sink }, found, signal)
      : await checkTarget(sink, found, config.mode, [], identity, signal, about)),
  ])
  if (found.length === 0) {
    throw new Failure('TABLE_MISSING', {
      object: config.tables.include.join(', '),
      observed: 'no table of the source matches tables.include without tables.exclude',
      needed: 'at least one table',
    })
  }
  if (begun) await leaveTables(parts, sink, store, found, { epoch, signal })
  const reader = await source.reader('now', signal)
  const noted = await sink.copies(signal)
  // Nothing was copied, or followed, before it has begun.
  const copies = new Map((begun ? noted : []).map((copy) => [tableName(copy.table), copy]))
  const versions = (await source.versions?.(signal)) ?? []
  const followed = new Set(
    versions.map(({ table }) => tableName(table)).filter((name) => copies.get(name)?.live === true),
  )
  const limits = { partitions: config.log.partitions, chunkRows: config.snapshot.chunkRows }
  const all = await registerTables(config.name, found, filter, store, reader, { ...limits, begun, followed }, signal)
  await reader[Symbol.asyncDispose]()
  failpoint('setup.after-tables')
  const topics = topicsOf(config.name, all)
  await openTopics(changeLog, store, topics, begun, signal)
  failpoint('setup.after-topics')
  if (!begun) await demandEmpty(changeLog, topics, config.name, signal)
  const schemas = all.map(({ schema }) => schema)
  await sink.prepare([], 'before', undefined, signal)
  failpoint('setup.after-own-tables')
  if (begun) await demandKnownLog(changeLog, sink, all, signal)
  const open = all.filter(({ schema }) => copies.get(tableName(schema.table))?.live !== true)
  const copying = config.mode !== 'incremental'
  const added = begun ? open.filter(({ schema }) => !copies.has(tableName(schema.table))) : []
  if (added.length > 0)
    blockUnless(
      (await sink.occupied?.(
        added.map(({ schema }) => schema),
        signal,
      )) ?? [],
    )
  if (open.length > 0) await prepare(parts, { source, sink, store }, all, 'before', signal)
  failpoint('setup.after-schema')
  // The target's table may stand at any version, or between two: a barrier or the first row tells.
  const versionsOf = Map.groupBy(versions, ({ table }) => tableName(table))
  const settled = schemas.filter(({ table }) => (versionsOf.get(tableName(table))?.length ?? 0) <= 1)
  blockUnless(await sink.check(settled, signal, about))
  const hold = async (held: readonly Registered[], start?: Start): Promise<void> => {
    const copies = held.map(({ schema, route }) => {
      return { table: schema.table, partitions: partitionsOf(route), snapshot: origin, live: !copying }
    })
    await sink.setCopies(copies, epoch, signal, start)
    failpoint('setup.after-hold')
  }
  if (!begun) {
    const former = noted.map(({ table }) => table)
    if (former.length > 0) await sink.leave(former, epoch, signal)
    await hold(open)
  }
  const { snapshot, start } = await keepChanges(source, schemas, startAt, signal)
  failpoint('setup.between-retain-and-begun')
  if (!begun) await writeBegun(store, { tables: all.length, startAt }, signal)
  failpoint('setup.after-begun')
  if (added.length > 0) {
    // No capture and no lane runs yet, so that nothing of them is applied, and what their topics hold is of a time before.
    const { position } = await source.health(signal)
    const tail = await readTail(changeLog, config.name, signal)
    const ends = await changeLog.ends(
      added.flatMap(({ route }) => partitionsOf(route)),
      signal,
    )
    await hold(added, { ends, position, epoch: tail.epoch })
  }
  if (copying) return { tables: all, snapshot, start }
  await snapshot?.[Symbol.asyncDispose]()
  return { tables: all, snapshot: undefined, start }
}

async function keepChanges(
  source: Source,
  schemas: readonly TableSchema[],
  startAt: string | undefined,
  signal: AbortSignal,
): Promise<Pick<Setup, 'snapshot' | 'start'>> {
  if (startAt === undefined) return { snapshot: await source.retain(schemas, signal), start: origin }
  if (source.adopt === undefined) {
    throw new Failure('UNSUPPORTED', { object: 'startAt', observed: 'this source begins at its first start only' })
  }
  return { snapshot: undefined, start: await source.adopt(schemas, startAt, signal) }
}

/** Tables that the configuration does not name any more. Their topics, and their rows at the target, stay as they are. */
async function leaveTables(
  parts: Parts,
  sink: Sink,
  store: StateStore,
  found: readonly TableSchema[],
  { epoch, signal }: Pick<Lease, 'epoch' | 'signal'>,
): Promise<void> {
  const names = new Set(found.map(({ table }) => tableName(table)))
  // A part of another table may be named by that one alone, which only the source knows.
  const stays = (table: TableId): boolean => names.has(tableName(table)) || parts.filter(table)
  const gone = await leaveOut(store, stays, async (table) => await sink.leave([table], epoch, signal), signal)
  if (gone.length === 0) return
  const facts = {
    tables: gone.map(({ schema }) => tableName(schema.table)),
    topics: gone.map(({ route }) => route.topic),
  }
  parts.log.warn(
    facts,
    'left out as the configuration says: their topics and their rows at the target stay as they are; to take one in again, empty it at the target first',
  )
}

const sameDatabase: Finding = {
  id: 'target.same',
  level: 'blocker',
  observed: 'source and target are the same database',
  needed: 'two databases',
  remedy: 'Correct the address of the target',
}

/** The preflight of a target, which is not the `source` of this identity; what none of these `copies` has begun to fill must be empty, unless the data
 *  are there already. */
export async function checkTarget(
  sink: Sink,
  tables: readonly TableSchema[],
  mode: PipelineConfig['mode'],
  copies: readonly CopyState[],
  source: string | undefined,
  signal: AbortSignal,
  about?: AboutSource,
): Promise<readonly Finding[]> {
  if (source !== undefined && (await sink.identity?.(signal)) === source) return [sameDatabase]
  const findings = await sink.check(tables, signal, about)
  if (mode === 'incremental' || sink.occupied === undefined || findings.some(({ level }) => level === 'blocker')) {
    return findings
  }
  const byName = new Map(copies.map((copy) => [tableName(copy.table), copy]))
  const unfilled = tables.filter(({ table }) => {
    const copy = byName.get(tableName(table))
    return copy === undefined || (!copy.live && copy.done.length === 0)
  })
  return [...findings, ...(await sink.occupied(unfilled, signal))]
}

/** What slows a copy down and is made after it: the rest of the schema, where we make it, and counters. */
export async function complete(
  parts: Parts,
  { source, sink, store }: { source: Source; sink: Sink; store: StateStore },
  tables: readonly Registered[],
  signal: AbortSignal,
): Promise<void> {
  await prepare(parts, { source, sink, store }, tables, 'after', signal)
  failpoint('copy.between-schema-and-counters')
  if (source.counters && sink.advance) await sink.advance(await source.counters(parts.filter, signal), signal)
}

async function prepare(
  parts: Parts,
  { source, sink, store }: { source: Source; sink: Sink; store: StateStore },
  tables: readonly Registered[],
  phase: 'before' | 'after',
  signal: AbortSignal,
): Promise<void> {
  const schemas = tables.map(({ schema }) => schema)
  const style = await schemaStyle(parts, source, sink, store, schemas, signal)
  const ddl = style === 'none' ? undefined : await source.ddl?.(schemas, style, signal)
  if (phase === 'before' && ddl !== undefined && ddl.notCopied.length > 0)
    parts.log.warn({ notCopied: ddl.notCopied }, 'definitions that are not brought to the target')
  await sink.prepare(schemas, phase, ddl, signal)
}

/** Creates the topics, and recognises those it created: one that was made anew under its old name is not the log we need (H23). */
async function openTopics(
  changeLog: ChangeLog,
  store: StateStore,
  topics: readonly Topic[],
  begun: boolean,
  signal: AbortSignal,
): Promise<void> {
  const stored = await store.get('topic-ids', signal)
  const known = ((begun ? stored?.value : undefined) ?? {}) as Readonly<Record<string, string>>
  const recorded = topics.map((topic) => {
    const id = known[topic.name]
    return id === undefined ? topic : { ...topic, id }
  })
  await changeLog.open(recorded, signal)
  failpoint('setup.between-topics-and-ids')
  const names = new Set(topics.map(({ name }) => name))
  if (names.size === Object.keys(known).length && Object.keys(known).every((name) => names.has(name))) return
  const ids = Object.fromEntries(await changeLog.topicIds([...names], signal))
  // Only theirs: the topic of a table that was left out is its owner's to delete.
  await putAlone(store, 'topic-ids', ids, stored?.revision ?? 0, signal)
}

/** Before a pipeline has begun nothing of it is in the log: what is there is an earlier one's, and would be applied. */
async function demandEmpty(
  changeLog: ChangeLog,
  topics: readonly Topic[],
  pipeline: string,
  signal: AbortSignal,
): Promise<void> {
  const all = topics.flatMap(({ name, partitions }) => partitionsOf({ topic: name, partitions }))
  const filled = (await changeLog.ends(all, signal)).filter(({ offset }) => offset > 0)
  const names = [...new Set(filled.map(({ topic }) => topic))]
  if (names.length === 0) return
  throw new Failure('TOPIC_MISMATCH', {
    object: `topics ${names.slice(0, 5).join(', ')}${names.length > 5 ? ` and ${names.length - 5} more` : ''}`,
    observed: 'they hold records of an earlier pipeline of this name',
    needed: 'empty topics, or none',
    effect: 'nothing was started',
    next: `Delete the topics whose names begin with ${pipeline}. where nobody reads them, or change the pipeline name`,
  })
}

/** As each lane does when it claims, but before anything is appended: a source must forget nothing for the sake of a log that is not ours (H23). */
async function demandKnownLog(
  changeLog: ChangeLog,
  sink: Sink,
  tables: readonly Registered[],
  signal: AbortSignal,
): Promise<void> {
  const topics = new Set(tables.map(({ route }) => route.topic))
  const checkpoints = await sink.checkpoints(signal)
  await demandKnown(
    changeLog,
    checkpoints.filter(({ topic }) => topics.has(topic)),
    signal,
  )
}

export function topicsOf(pipeline: string, tables: readonly Registered[]): readonly Topic[] {
  const data = new Map(tables.map(({ route }) => [route.topic, route.partitions]))
  return [
    { name: controlTopic(pipeline), partitions: 1, cleanup: 'size' },
    { name: schemasTopic(pipeline), partitions: 1, cleanup: 'compact' },
    ...[...data].map(([name, partitions]): Topic => ({ name, partitions, cleanup: 'delete' })),
  ]
}

/** `auto` is decided once, before anything is written, and stored: after a crash half the tables are there. Anything else is as the operator says now. */
async function schemaStyle(
  { config, log }: Parts,
  source: Source,
  sink: Sink,
  store: StateStore,
  schemas: readonly TableSchema[],
  signal: AbortSignal,
): Promise<SchemaStyle> {
  if (config.snapshot.schema !== 'auto') return config.snapshot.schema
  const decided = await store.get('schema-style', signal)
  if (decided !== undefined) return decided.value as SchemaStyle
  const style = await automatic()
  await putAlone(store, 'schema-style', style, 0, signal)
  failpoint('setup.after-style')
  return style

  async function automatic(): Promise<SchemaStyle> {
    const present = new Set((await sink.present(schemas, signal)).map(tableName))
    if (present.size === schemas.length) return 'none'
    if (present.size > 0) {
      const missing = schemas.map(({ table }) => tableName(table)).filter((name) => !present.has(name))
      throw new Failure('TARGET_SHAPE', {
        object: missing.slice(0, 5).join(', '),
        observed: `${missing.length} of ${schemas.length} tables are missing at the target, the others are there`,
        needed: 'all of them or none',
        next: 'Create the missing ones, or drop the others, or say snapshot.schema: none, dump or tables',
      })
    }
    if (source.ddl === undefined || config.mode === 'incremental') return 'none'
    try {
      await source.ddl(schemas, 'dump', signal)
      return 'dump'
    } catch (error) {
      const failure = asFailure(error)
      if (failure.code !== 'UNSUPPORTED') throw failure
      const { object, observed } = failure.facts
      log.info({ why: [object, observed].join(': ') }, 'the schema is copied by its tables, not by a dump')
      return 'tables'
    }
  }
}

/** CHECK_FAILED with every blocker. */
function blockUnless(findings: readonly Finding[]): void {
  const blockers = findings.filter(({ level }) => level === 'blocker')
  if (blockers.length === 0) return
  throw new Failure('CHECK_FAILED', {
    observed: `${blockers.length} of ${findings.length} findings`,
    effect: 'nothing was started',
    all: blockers.map(({ id, observed, needed, remedy }) => ({
      object: id,
      observed,
      needed,
      ...(remedy !== undefined && { next: remedy }),
    })),
  })
}
