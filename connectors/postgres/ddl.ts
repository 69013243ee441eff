import { z } from 'zod'
import type { Ddl } from '../../src/connector.ts'
import { Failure } from '../../src/errors.ts'
import type { TableSchema } from '../../src/model.ts'
import { close, connect, type PostgresConfig } from './config.ts'
import { destroy } from './copy-out.ts'
import { dumpSections } from './ddl-dump.ts'
import { tableSections } from './ddl-tables.ts'
import { mapError, sqlState } from './errors.ts'
import { failpoint } from '../../src/failpoint.ts'
import { lockDdl } from './queries.ts'
import { readCatalog } from './schema.ts'

/** One thing to make. `probe`: a condition in SQL that says that it is there already; then it is left out. */
export type Step = { readonly what: string; readonly probe?: string; readonly sql: string }
/** Steps of one transaction. */
export type Section = readonly Step[]
export type Sections = {
  readonly before: readonly Section[]
  readonly after: readonly Section[]
  readonly notCopied: readonly string[]
}

const steps = z.array(z.array(z.object({ what: z.string(), probe: z.string().optional(), sql: z.string() })))
const content = z.object({ version: z.literal(1), before: steps, after: steps })
const dialect = 'postgres'

/**
 * The definitions of these tables and of what they use, for `applyDdl` at another server. `tables` makes the statements
 * from the catalog; `dump` takes the whole database's from pg_dump, and rejects with UNSUPPORTED where no pg_dump at
 * least as new as the server is found: `tables` is the other way then.
 */
export async function readDdl(
  config: PostgresConfig,
  tables: readonly TableSchema[],
  style: 'dump' | 'tables',
  signal: AbortSignal,
): Promise<Ddl> {
  const client = await connect(config, { name: 'definitions' }, signal)
  const cut = (): void => destroy(client)
  signal.addEventListener('abort', cut, { once: true })
  try {
    const names = new Set(tables.map(({ table }) => JSON.stringify([table.schema, table.name])))
    await client.query('begin isolation level repeatable read read only')
    const catalog = await readCatalog(client, (table) => names.has(JSON.stringify([table.schema, table.name])))
    const sections =
      style === 'dump' ? await dumpSections(config, client, catalog, signal) : await tableSections(client, catalog)
    await client.query('commit')
    const made: z.infer<typeof content> = {
      version: 1,
      before: mutable(sections.before),
      after: mutable(sections.after),
    }
    return { dialect, content: Buffer.from(JSON.stringify(made)), notCopied: sections.notCopied }
  } catch (error) {
    signal.throwIfAborted()
    throw mapError(error)
  } finally {
    signal.removeEventListener('abort', cut)
    await close(client)
  }
}

/**
 * Makes what of a phase is not there yet; a repeat finishes it. Each section is one transaction, and only one process
 * makes definitions at a time. A foreign key that does not hold yet, because rows are still on their way, is SERVER_BUSY: ask again.
 */
export async function applyDdl(
  config: PostgresConfig,
  ddl: Ddl,
  phase: 'before' | 'after',
  signal: AbortSignal,
): Promise<void> {
  if (ddl.dialect !== dialect)
    throw new Failure('UNSUPPORTED', { observed: `definitions in the dialect ${ddl.dialect}`, needed: dialect })
  const sections = content.parse(JSON.parse(Buffer.from(ddl.content).toString('utf8')))
  const client = await connect(config, { name: 'definitions' }, signal)
  const cut = (): void => destroy(client)
  signal.addEventListener('abort', cut, { once: true })
  let at = ''
  try {
    for (const section of sections[phase]) {
      at = phase
      await client.query('begin')
      await lockDdl(client)
      for (const step of section) {
        at = step.what
        if (step.probe !== undefined) {
          const { rows } = await client.query<{ there: boolean }>(`select (${step.probe}) as there`)
          if (rows[0]?.there) continue
        }
        await client.query(step.sql)
      }
      at = phase
      failpoint(phase === 'before' ? 'schema.before-tables' : 'schema.before-rest')
      await client.query('commit')
      failpoint(phase === 'before' ? 'schema.after-tables' : 'schema.after-rest')
    }
  } catch (error) {
    signal.throwIfAborted()
    if (phase === 'after' && sqlState(error) === '23503')
      throw new Failure('SERVER_BUSY', {
        object: at,
        observed: 'does not hold yet: some rows are still on their way',
        cause: mapError(error),
      })
    const failure = mapError(error, at)
    // Whatever the server objects to here is something an operator can see and change, not a defect.
    if (failure instanceof Failure && failure.code === 'BUG' && sqlState(error) !== undefined)
      throw new Failure('TARGET_SHAPE', {
        ...failure.facts,
        next: 'Create it by hand, then run with snapshot.schema: none',
      })
    throw failure
  } finally {
    signal.removeEventListener('abort', cut)
    await close(client)
  }
}

function mutable(sections: readonly Section[]): { what: string; probe?: string; sql: string }[][] {
  return sections.map((section) => section.map((step) => ({ ...step })))
}
