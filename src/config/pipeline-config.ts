import * as z from 'zod'
import { parsePattern } from './table-pattern.ts'

/** A database: which connector, and the rest of its mapping as the file has it, which only that connector understands. */
type Endpoint = { readonly type: string; readonly [key: string]: unknown }
export type Mode = 'full' | 'incremental' | 'hybrid'
type Tls = {
  readonly ca?: string | undefined
  readonly cert?: string | undefined
  readonly key?: string | undefined
  readonly servername?: string | undefined
}
type Sasl = {
  readonly mechanism: 'plain' | 'scram-sha-256' | 'scram-sha-512'
  readonly username: string
  readonly password: string
}
type KafkaLogConfig = {
  readonly type: 'kafka'
  readonly brokers: readonly string[]
  readonly partitions: number
  readonly replication: number
  readonly maxMessageBytes: number
  readonly ssl?: boolean | Tls | undefined
  readonly sasl?: Sasl | undefined
}
/** `dir`: absolute. */
type EmbeddedLogConfig = {
  readonly type: 'embedded'
  readonly dir: string
  readonly partitions: number
  readonly maxMessageBytes: number
}
export type PipelineConfig = {
  readonly name: string
  readonly mode: Mode
  /** Only with `incremental`. */
  readonly startAt?: string | undefined
  readonly source: Endpoint
  readonly target: Endpoint
  readonly state?: Endpoint | undefined
  readonly tables: { readonly include: readonly string[]; readonly exclude: readonly string[] }
  readonly ddl: 'apply' | 'stop'
  readonly log: KafkaLogConfig | EmbeddedLogConfig
  readonly snapshot: {
    readonly parallel: number
    readonly chunkRows: number
    readonly schema: 'auto' | 'dump' | 'tables' | 'none'
  }
  readonly apply: { readonly lanes: number; readonly batchRows: number; readonly batchBytes: number }
  readonly verify: {
    readonly schedule: 'off' | 'continuous'
    readonly rate: number
    readonly maxLoad?: number | undefined
  }
  /** Absolute folder for what this machine keeps of its pipelines: `.crossfade` beside the file. Not a key of the file. */
  readonly dir: string
}
/** What the file says, after defaults. Paths are still as written. */
export type FileConfig = Omit<PipelineConfig, 'dir'>

const units: Readonly<Record<string, number>> = { '': 1, B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3 }
const sizePattern = /^(\d+)\s?(B|KiB|MiB|GiB)?$/

/** Bytes of `4MiB`; NaN where it is no size. */
function parseSize(text: string): number {
  const [, digits = '', unit = ''] = sizePattern.exec(text.trim()) ?? []
  return digits === '' ? Number.NaN : Number(digits) * (units[unit] ?? Number.NaN)
}

function formatSize(bytes: number): string {
  for (const unit of ['GiB', 'MiB', 'KiB']) {
    const size = units[unit] ?? 1
    if (bytes >= size && bytes % size === 0) return `${bytes / size}${unit}`
  }
  return `${bytes}B`
}

const size = (least: number, most: number) =>
  z
    .union([z.int(), z.string().regex(sizePattern)], { error: 'expected a size such as 4MiB' })
    .transform((given, context) => {
      const bytes = typeof given === 'number' ? given : parseSize(given)
      if (bytes >= least && bytes <= most) return bytes
      context.addIssue({ code: 'custom', message: `must be between ${formatSize(least)} and ${formatSize(most)}` })
      return z.NEVER
    })
    .meta({ range: `${formatSize(least)} to ${formatSize(most)}` })
const count = (least: number, most: number) => z.int().min(least).max(most)
const patterns = () =>
  z.array(z.string().refine((pattern) => parsePattern(pattern) !== undefined, { error: 'expected schema.table' }))
const text = () => z.string().min(1, { error: 'must not be empty' })
const endpoint = (description: string) =>
  z.looseObject({ type: text().meta({ description: 'The connector.' }) }).meta({ description })

const messageBytes = (standard: string, about: string) =>
  size(1024 ** 2, 1024 ** 3)
    .prefault(standard)
    .meta({
      description: `Largest record in the log, so about the largest changed row (twice that where whole old rows are logged). A larger one stops the pipeline before anything is lost; with a larger value it goes on. Costs memory only while such rows pass. ${about}`,
    })

const embedded = z.strictObject({
  type: z.literal('embedded').meta({ description: 'Files on this machine: one process, no broker.' }),
  dir: text().default('.crossfade/log').meta({ description: 'Folder of the log, from the folder of this file.' }),
  partitions: count(1, 1000).default(8).meta({
    description:
      'Partitions of a table with 100,000 rows or more; smaller tables get one. Fixed once a table is copied.',
  }),
  maxMessageBytes: messageBytes('64MiB', 'No broker limits it here.'),
})
const kafka = z.strictObject({
  type: z.literal('kafka').meta({ description: 'A Kafka cluster.' }),
  brokers: z
    .array(text().regex(/^(\[[^\]]+\]|[^\s:/]+):\d{1,5}$/, { error: 'expected host:port' }))
    .min(1, { error: 'needs at least one host:port' })
    .meta({ description: 'Some of the brokers as `host:port`; the others are found through them.' }),
  partitions: count(1, 1000).default(8).meta({
    description:
      'Partitions of a table with 100,000 rows or more; smaller tables get one. Fixed once a table is copied.',
  }),
  replication: count(1, 15).default(3).meta({
    description:
      'Copies of each partition, at most the number of brokers. With 1, an acknowledged change survives a crash of the broker’s process, not of its disk.',
  }),
  maxMessageBytes: messageBytes(
    '8MiB',
    'Compressed. `max.message.bytes` of the topics is set to it, and raised when it is raised; the brokers’ `socket.request.max.bytes` has to be larger.',
  ),
  ssl: z
    .union([
      z.boolean(),
      z.strictObject({
        ca: text().optional().meta({ description: 'Certificates trusted, PEM; best as `${file:PATH}`.' }),
        cert: text().optional().meta({ description: 'Client certificate, PEM.' }),
        key: text().optional().meta({ description: 'Its private key, PEM.' }),
        servername: text().optional().meta({ description: 'Name expected in the brokers’ certificates.' }),
      }),
    ])
    .optional()
    .meta({
      description: 'TLS to the brokers: `true`, or a mapping with `ca`, `cert`, `key`, `servername` (PEM texts).',
    }),
  sasl: z
    .strictObject({
      mechanism: z.enum(['plain', 'scram-sha-256', 'scram-sha-512']).meta({ description: 'How to log in.' }),
      username: text().meta({ description: 'User.' }),
      password: text().meta({ description: 'Password; best as `${env:NAME}` or `${file:PATH}`.' }),
    })
    .optional()
    .meta({ description: 'Login at the brokers.' }),
})

/** The one table of options: types, defaults, ranges, help, and through them docs/config.md and the JSON schema. */
const definition = z
  .strictObject({
    name: z
      .string()
      .regex(/^[a-z][a-z0-9_]{0,30}$/, {
        error: 'must be a letter a-z, then up to 30 of a-z, 0-9 and _',
      })
      .meta({
        description: 'Name of the pipeline; part of the names of topics, slots and publications. Never change it.',
      }),
    mode: z.enum(['full', 'incremental', 'hybrid']).default('hybrid').meta({
      description:
        '`full`: copy, stream until the copy is consistent, end. `incremental`: changes only; the target already holds the data as of the start. `hybrid`: copy, then changes for as long as it runs.',
    }),
    startAt: text()
      .optional()
      .meta({
        examples: ['16/B374D848'],
        description:
          '`incremental` only: the place in the source’s log as of which the target holds the data, as the source prints it, like `16/B374D848`. A slot and a publication, both called `crossfade_<name>` and made by hand, the publication first, must keep the changes from there on. Without it: the place of the slot that the first start makes.',
      }),
    source: endpoint('Database that is read. `type` names the connector; the other keys are its own, below.'),
    target: endpoint('Database that is written.'),
    state: endpoint('Database for leases, tasks and journal; default: the target.').optional(),
    tables: z
      .strictObject({
        include: patterns().min(1, { error: 'needs at least one pattern' }).default(['*.*']).meta({
          description: 'Patterns `schema.table` with `*` and `?`; `*.*` is every user table.',
        }),
        exclude: patterns().default([]).meta({ description: 'Patterns of tables to leave out; they win.' }),
      })
      .prefault({})
      .meta({ description: 'Tables of the pipeline.' }),
    ddl: z.enum(['apply', 'stop']).default('stop').meta({
      description:
        'When a table’s definition changes at the source. `stop`: the pipeline applies what came before, ends with the statements for the target, and goes on at the next start once they were run. `apply`: it makes the change at the target itself where that can be proved right, and stops otherwise.',
    }),
    log: z.discriminatedUnion('type', [kafka, embedded]).meta({
      description: 'The change log. Without `type`: `kafka` if brokers are named, else `embedded`.',
    }),
    snapshot: z
      .strictObject({
        parallel: count(1, 64).default(4).meta({ description: 'Chunks copied at the same time.' }),
        chunkRows: count(1, 100_000_000).default(100_000).meta({ description: 'Rows of a chunk, about.' }),
        schema: z.enum(['auto', 'dump', 'tables', 'none']).default('auto').meta({
          description:
            'Who creates the tables at the target. `dump`: the source’s own dump tools; `tables`: tables, keys, indexes and constraints by crossfade; `none`: they must exist; `auto`: if all exist, `none`, else `dump` where it can be done, else `tables`.',
        }),
      })
      .prefault({})
      .meta({ description: 'The copy.' }),
    apply: z
      .strictObject({
        lanes: count(1, 64).default(4).meta({ description: 'Connections that write to the target.' }),
        batchRows: count(1, 100_000).default(2000).meta({ description: 'Most changes in one transaction.' }),
        batchBytes: size(1024, 256 * 1024 ** 2)
          .prefault('4MiB')
          .meta({ description: 'Most bytes in one transaction, unless a single change is larger.' }),
      })
      .prefault({})
      .meta({ description: 'How changes are written.' }),
    verify: z
      .strictObject({
        schedule: z.enum(['off', 'continuous']).default('off').meta({
          description:
            'Whether the running pipeline verifies itself: `continuous` looks at rows soon after their changes were applied and reads all tables slowly, again and again; `crossfade status` tells what it found.',
        }),
        rate: count(1, 1_000_000_000).default(5000).meta({
          description: 'Rows that it reads at the source a second, at most; rows that changed take half of it at most.',
        }),
        maxLoad: count(0, 1_000_000)
          .optional()
          .meta({ description: 'It rests while more sessions of others than this are at work at the source.' }),
      })
      .prefault({})
      .meta({ description: 'Continuous verification, by `run` and by `verify --continuous`.' }),
  })
  .check((context) => {
    if (context.value.startAt !== undefined && context.value.mode !== 'incremental') {
      const message = `only with mode: incremental, not ${context.value.mode}`
      context.issues.push({ code: 'custom', path: ['startAt'], message, input: context.value })
    }
  })

export const fileConfig: z.ZodType<FileConfig> = definition

/** JSON schema of what may stand in a file, before references are resolved and defaults are set; for docs/config.md and, through `editorSchema`, for
 *  editors. */
export function jsonSchema(): JsonSchema {
  const schema = z.toJSONSchema(definition, { io: 'input', target: 'draft-7' }) as JsonSchema
  // `loadConfig` chooses the log's type where it is not written.
  schema.required = schema.required?.filter((key) => key !== 'log') ?? []
  return schema
}
export type JsonSchema = {
  type?: string
  description?: string
  default?: unknown
  required?: string[]
  properties?: Record<string, JsonSchema>
  items?: JsonSchema
  oneOf?: JsonSchema[]
  anyOf?: JsonSchema[]
  enum?: unknown[]
  const?: unknown
  minimum?: number
  maximum?: number
  pattern?: string
  examples?: unknown[]
  /** Ours: least and most of a size. */
  range?: string
}

/** As editors need it: a reference may stand where a number or a truth value is wanted. */
export function editorSchema(): JsonSchema {
  const loosen = (schema: JsonSchema): JsonSchema => {
    const { properties, items, oneOf, anyOf, range: _, ...rest } = schema
    if (rest.type === 'integer' || rest.type === 'boolean') {
      const { description, ...plain } = rest
      const either: JsonSchema = { anyOf: [plain, { type: 'string', pattern: '\\$\\{' }] }
      return description === undefined ? either : { description, ...either }
    }
    const choices = oneOf ?? anyOf
    if (properties && rest.const === undefined && properties['type']?.const !== undefined)
      rest.required = rest.required?.filter((key) => key !== 'type') ?? []
    return {
      ...rest,
      ...(properties && {
        properties: Object.fromEntries(Object.entries(properties).map(([key, value]) => [key, loosen(value)])),
      }),
      ...(items && { items: loosen(items) }),
      ...(choices && { anyOf: choices.map(loosen) }),
    }
  }
  return loosen(jsonSchema())
}
