import type pg from 'pg'
import { Failure } from '../../src/errors.ts'
import { tableName, type TableId } from '../../src/model.ts'
import { ask } from './answer.ts'
import type { PostgresConfig } from './config.ts'
import { withRoots } from './retained.ts'
import {
  selectDropped,
  selectPublication,
  selectPublicationDigest,
  selectRoots,
  selectShapes,
  selectSlot,
  type PublicationRow,
  type PublishedRow,
  type Shapes,
  type SlotRow,
} from './source-queries.ts'

/** Slot and publication of a pipeline, which have one name, and what is published, as the source shows them now. */
export interface SourceObjects {
  readonly publication: (signal: AbortSignal) => Promise<PublicationRow | undefined>
  /** PUBLICATION_CHANGED if it is gone. */
  readonly published: (signal: AbortSignal) => Promise<PublicationRow>
  /** SLOT_LOST if it is gone, invalidated or another one. */
  readonly slot: (signal: AbortSignal) => Promise<SlotRow>
  /** `only`: of this table alone. */
  readonly shapes: (signal: AbortSignal, only?: number) => Promise<Shapes>
  /** Another one whenever others changed publication or tables. */
  readonly digest: (signal: AbortSignal) => Promise<string | undefined>
  /** The tables, and partitioned ones that they are the whole of. */
  readonly withRoots: (tables: readonly TableId[], signal: AbortSignal) => Promise<readonly TableId[]>
  /** TABLE_MISSING where a table is not published because it is gone: it is said to be gone, not only to be missing. */
  readonly demandThere: (
    tables: readonly PublishedRow[],
    now: PublicationRow | undefined,
    signal: AbortSignal,
  ) => Promise<void>
}

export function sourceObjects(
  control: pg.Client,
  { database }: PostgresConfig,
  name: string,
  serverVersion: number,
): SourceObjects {
  const publication = `publication ${name}`
  const find = async (signal: AbortSignal): Promise<PublicationRow | undefined> =>
    await ask(selectPublication(control, name, serverVersion), signal, publication)
  return {
    publication: find,
    async published(signal) {
      const row = await find(signal)
      if (!row) throw new Failure('PUBLICATION_CHANGED', { object: publication, observed: 'it was dropped' })
      return row
    },
    async slot(signal) {
      const row = await ask(selectSlot(control, name), signal, `slot ${name}`)
      const lost = (observed: string): Failure => new Failure('SLOT_LOST', { object: `slot ${name}`, observed })
      if (!row) throw lost('it does not exist')
      if (row.wal_status === 'lost')
        throw lost(`it was invalidated${row.invalidation_reason ? `: ${row.invalidation_reason}` : ''}`)
      if (row.database !== database || row.plugin !== 'pgoutput')
        throw lost(`it is one of ${row.plugin} in database ${row.database}`)
      return row
    },
    shapes: async (signal, only) => await ask(selectShapes(control, name, only), signal, publication),
    digest: async (signal) => await ask(selectPublicationDigest(control, name, serverVersion), signal, publication),
    withRoots: async (tables, signal) => withRoots(tables, await ask(selectRoots(control, tables), signal)),
    async demandThere(tables, now, signal) {
      const published = new Set(now?.relations.map(({ oid }) => oid))
      const missing = tables.filter(({ oid }) => !published.has(oid))
      if (missing.length === 0) return
      const oids = missing.map(({ oid }) => oid)
      const dropped = await ask(selectDropped(control, oids), signal)
      const gone = missing.filter(({ oid }) => dropped.includes(oid)).map(tableName)
      if (gone.length > 0)
        throw new Failure('TABLE_MISSING', {
          object: gone.join(', '),
          observed: 'dropped at the source',
          needed: 'every table the pipeline began with',
          effect: 'nothing more is captured',
          next: 'To go on without it, name it under tables.exclude and start again; one made anew under its name can be taken in after that',
        })
    },
  }
}
