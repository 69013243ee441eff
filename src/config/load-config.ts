import { readFileSync } from 'node:fs'
import { dirname, isAbsolute, relative, resolve } from 'node:path'
import {
  isAlias,
  isMap,
  isNode,
  isScalar,
  isSeq,
  LineCounter,
  parseDocument,
  visit,
  type Document,
  type Node,
  type Pair,
  type YAMLParseError,
} from 'yaml'
import type { Connector } from '../connector.ts'
import { asFailure, Failure, type Facts } from '../errors.ts'
import { nearest } from './near.ts'
import { fileConfig, type FileConfig, type PipelineConfig } from './pipeline-config.ts'
import { problemsOf, unknownKey, type Path, type Problem } from './problems.ts'
import { isSecretKey, masker, resolveReferences, secretsOf } from './references.ts'

export type LoadedConfig = {
  readonly config: PipelineConfig
  readonly warnings: readonly Facts[]
  /** Shows a text without the secrets of this configuration. */
  readonly mask: (text: string) => string
  /** Where a key of the file stands, with file and line; undefined for one left to its default. */
  readonly locate: (key: string) => string | undefined
}
type LoadOptions = {
  /** To check the databases' own keys with their lines; without it only the rest is checked. Rejects for an unknown type. */
  readonly connectors?: (type: string) => Promise<Connector>
  /** The folder that paths in messages are shown from. */
  readonly from?: string
}

/** Reads a configuration file. CONFIG_INVALID names every problem at once, each with file, line and column, and never a secret. Paths in it, of
 *  `${file:PATH}` too, are resolved from the file's folder. */
export async function loadConfig(
  path: string,
  env: Readonly<Record<string, string | undefined>>,
  { connectors, from = process.cwd() }: LoadOptions = {},
): Promise<LoadedConfig> {
  const file = resolve(path)
  const inside = relative(from, file)
  const shown = inside.startsWith('..') ? file : inside
  const folder = dirname(file)
  const text = read(file, shown)
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false })
  const place = (offset: number): string => {
    const { line, col } = lines.linePos(offset)
    return `${shown}:${line}:${col}`
  }
  const [unreadable] = document.errors
  if (unreadable) throw invalid(shown, [notYaml(unreadable, text, place)])

  const problems: { readonly offset: number; readonly facts: Facts }[] = []
  const inOrder = (): readonly Facts[] => problems.toSorted((a, b) => a.offset - b.offset).map(({ facts }) => facts)
  /** What was written where a reference stood, by the node's identity. */
  const references = new Map<unknown, string>()
  /** Values that could not be had: nothing else is said about them. */
  const failed = new Set<unknown>()
  const readFile = (name: string): string => readFileSync(isAbsolute(name) ? name : resolve(folder, name), 'utf8')
  visit(document, {
    Scalar: (key, node) => {
      if (key === 'key' || typeof node.value !== 'string') return
      const written = node.value
      const { text: value, foreign, problems: found } = resolveReferences(written, { env, readFile })
      const offset = node.range?.[0] ?? 0
      for (const problem of found) problems.push({ offset, facts: { object: place(offset), ...problem } })
      if (found.length > 0) failed.add(node)
      if (foreign) references.set(node, written)
      node.value = value
    },
  })

  const raw: unknown = document.toJS() ?? {}
  const mask = masker(secretsOf(raw))
  const report = ({ path, on, ...facts }: Problem): void => {
    if (failed.has(document.getIn(path, true))) return
    const name = path.map((part) => (typeof part === 'number' ? `[${part}]` : `.${part}`)).join('')
    const offset = offsetOf(document, path, on)
    const object = `${place(offset)}  ${name.replace(/^\./, '')}`.trimEnd()
    const needed = facts.needed === undefined ? {} : { needed: mask(facts.needed) }
    problems.push({ offset, facts: { ...facts, object, observed: mask(facts.observed), ...needed } })
  }
  const show = (path: Path): string => {
    const node = document.getIn(path, true)
    const reference = references.get(node)
    if (reference !== undefined) return `the value of ${reference}`
    if (isSecretKey(String(path.at(-1)))) return '***'
    if (isMap(node)) return 'a mapping'
    if (isSeq(node)) return 'a list'
    return JSON.stringify(isScalar(node) ? node.value : node) ?? 'nothing'
  }

  chooseLog(raw)
  let parsed = fileConfig.safeParse(raw)
  if (!parsed.success && convertReferences(document, raw, parsed.error.issues, references))
    parsed = fileConfig.safeParse(raw)
  if (!parsed.success) for (const problem of problemsOf(parsed.error.issues, raw, show)) report(problem)
  const whole = (role: string): boolean => {
    let hurt = false
    const node = document.get(role, true)
    if (isNode(node)) visit(node, (_, inner) => void (hurt ||= failed.has(inner)))
    return !hurt
  }
  if (connectors) for (const problem of await endpointProblems(raw, connectors, whole)) report(problem)
  if (problems.length > 0 || !parsed.success) throw invalid(shown, inOrder())

  const warnings: Facts[] = []
  visit(document, {
    Pair: (_, { key, value }) => {
      if (!isScalar(key) || !isScalar(value) || typeof value.value !== 'string' || references.has(value)) return
      if (!secretsOf(value.value, String(key.value)).length) return
      warnings.push({
        object: place(value.range?.[0] ?? 0),
        observed: `a secret of ${String(key.value)} stands in the file itself`,
        next: 'Use ${env:NAME} or ${file:PATH}',
      })
    },
  })
  const locate = (key: string): string | undefined =>
    document.has(key) ? `${place(offsetOf(document, [key], 'value'))}  ${key}` : undefined
  return { config: finish(parsed.data, folder), warnings, mask, locate }
}

function read(file: string, shown: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : ''
    throw new Failure('CONFIG_INVALID', {
      object: shown,
      observed: code === 'ENOENT' ? 'there is no such file' : `the file cannot be read (${String(code)})`,
      next: code === 'ENOENT' ? `Create it: crossfade init ${shown}` : 'Let this user read it',
      cause: error,
    })
  }
}

/** The first error only: those after it are its consequences. What the parser met is not repeated, it may be a secret. */
function notYaml(
  { code, message, pos: [offset] }: YAMLParseError,
  text: string,
  place: (offset: number) => string,
): Facts {
  if (code === 'DUPLICATE_KEY') {
    const [key = ''] = /^[^:\s,{}]*/.exec(text.slice(offset)) ?? []
    return { object: place(offset), observed: `the key ${key} is there twice`, next: `Remove one ${key}` }
  }
  const [start, end] = [text.lastIndexOf('\n', offset - 1) + 1, text.indexOf('\n', offset)]
  const line = text.slice(start, end < 0 ? undefined : end)
  return {
    object: place(offset),
    observed: `not YAML: ${message.replace(/: ".*$/s, '')}`,
    next: /[:,[]\s*\$\{/.test(line)
      ? 'Put the reference in quotes: "${env:NAME}"'
      : 'Look for a missing quote, bracket or blank at this place or just before',
  }
}

function finish(config: FileConfig, folder: string): PipelineConfig {
  const { log } = config
  return {
    ...config,
    log: log.type === 'embedded' ? { ...log, dir: resolve(folder, log.dir) } : log,
    dir: resolve(folder, '.crossfade'),
  }
}

function invalid(shown: string, problems: readonly Facts[]): Failure {
  const [only] = problems
  if (only && problems.length === 1) return new Failure('CONFIG_INVALID', only)
  return new Failure('CONFIG_INVALID', { object: shown, observed: `${problems.length} problems`, all: problems })
}

/** Without `type`, brokers mean a broker. */
function chooseLog(raw: unknown): void {
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) return
  const holder = raw as { log?: unknown }
  const log = holder.log === undefined ? {} : holder.log
  if (typeof log !== 'object' || log === null || Array.isArray(log)) return
  holder.log = 'type' in log ? log : { type: 'brokers' in log ? 'kafka' : 'embedded', ...log }
}

/** A reference stands for text; where a number or a truth value is wanted, that text is read as one. */
function convertReferences(
  document: Document,
  raw: unknown,
  issues: readonly { readonly code: string; readonly path: readonly PropertyKey[] }[],
  references: ReadonlyMap<unknown, string>,
): boolean {
  let any = false
  for (const { code, path } of issues) {
    if ((code !== 'invalid_type' && code !== 'invalid_union') || !references.has(document.getIn(path, true))) continue
    const holder = path.slice(0, -1).reduce((value: unknown, key) => (value as Record<PropertyKey, unknown>)[key], raw)
    const values = holder as Record<PropertyKey, unknown>
    const key = path.at(-1) ?? ''
    const text = values[key]
    if (typeof text !== 'string') continue
    const trimmed = text.trim()
    if (/^-?\d+$/.test(trimmed)) values[key] = Number(trimmed)
    else if (trimmed === 'true' || trimmed === 'false') values[key] = trimmed === 'true'
    else continue
    any = true
  }
  return any
}

/** What a connector must offer to stand in a role. */
const opens = { source: 'openSource', target: 'openSink', state: 'openStore' } as const

async function endpointProblems(
  raw: unknown,
  connectors: (type: string) => Promise<Connector>,
  whole: (role: string) => boolean,
): Promise<readonly Problem[]> {
  const problems: Problem[] = []
  for (const role of Object.keys(opens) as (keyof typeof opens)[]) {
    const endpoint = (raw as Readonly<Record<string, unknown>> | undefined)?.[role]
    if (typeof endpoint !== 'object' || endpoint === null || Array.isArray(endpoint) || !whole(role)) continue
    const { type, ...rest } = endpoint as Readonly<Record<string, unknown>>
    if (typeof type !== 'string' || type === '') continue
    try {
      const connector = await connectors(type)
      if (!(opens[role] in connector)) {
        const observed = `${type} cannot be a ${role}`
        problems.push({ path: [role, 'type'], on: 'value', observed })
        continue
      }
      connector.parse(rest)
    } catch (error) {
      const failure = asFailure(error)
      if (failure.code !== 'CONFIG_INVALID') throw failure
      problems.push(...connectorProblems(role, failure))
    }
  }
  return problems
}

/** A connector lists its bad keys as the `cause`: `{ path, message }` each, with `known` keys beside an unknown one, and what is `needed`. Otherwise its
 *  whole text is about the mapping. */
function connectorProblems(role: string, { facts }: Failure): readonly Problem[] {
  const listed = Array.isArray(facts.cause) ? (facts.cause as readonly unknown[]) : []
  /** Keys that an unknown one stands for: that they are missing goes without saying. */
  const mistyped = new Set<string>()
  const problems = listed.flatMap((item): readonly Problem[] => {
    if (typeof item !== 'object' || item === null || !('path' in item) || !('message' in item)) return []
    const path = [role, ...(Array.isArray(item.path) ? (item.path as readonly (string | number)[]) : [])]
    const message = String(item.message)
    const key = path.at(-1)
    const known = 'known' in item && Array.isArray(item.known) ? item.known.map(String) : []
    if (message === 'unknown key' && key !== undefined) {
      const meant = nearest(String(key), known)
      if (meant !== undefined) mistyped.add([...path.slice(0, -1), meant].join('.'))
      return [unknownKey(path.slice(0, -1), String(key), known)]
    }
    const needed = 'needed' in item && typeof item.needed === 'string' ? { needed: item.needed } : {}
    const next = message === 'missing' && key !== undefined ? { next: `Add ${key}: …` } : {}
    return [{ path, on: 'value', observed: message, ...needed, ...next }]
  })
  if (problems.length > 0)
    return problems.filter(({ path, observed }) => observed !== 'missing' || !mistyped.has(path.join('.')))
  return [
    {
      path: [role, 'type'],
      on: 'value',
      observed: facts.observed ?? 'not accepted by the connector',
      ...(facts.needed !== undefined && { needed: facts.needed }),
      ...(facts.next !== undefined && { next: facts.next }),
    },
  ]
}

/** Where in the text a path stands; what is missing stands where its mapping does. */
function offsetOf(document: Document, path: Path, on: 'key' | 'value'): number {
  let node: Node | null = document.contents
  let at = node?.range?.[0] ?? 0
  for (const [depth, step] of path.entries()) {
    if (isAlias(node)) node = node.resolve(document) ?? null
    if (isMap(node)) {
      const pair: Pair | undefined = node.items.find(({ key }) => (isScalar(key) ? key.value : key) === step)
      if (!pair) return at
      const key = isNode(pair.key) ? pair.key.range?.[0] : undefined
      node = isNode(pair.value) ? pair.value : null
      at = (on === 'value' || depth < path.length - 1 ? node?.range?.[0] : undefined) ?? key ?? at
      if (depth === path.length - 1 && on === 'key') return key ?? at
    } else if (isSeq(node)) {
      const item: unknown = node.items[Number(step)]
      node = isNode(item) ? item : null
      at = node?.range?.[0] ?? at
    } else return at
  }
  return at
}

/** The name a file is found under when none is given. */
export const defaultFile: string = 'crossfade.yaml'
