import type * as z from 'zod'
import { jsonSchema, type JsonSchema } from './pipeline-config.ts'
import { nearest } from './near.ts'

export type Path = readonly (string | number)[]
/** One thing wrong in a file. `on`: the key, the value, or (for what is missing) the mapping it is missing from. */
export type Problem = {
  readonly path: Path
  readonly on: 'key' | 'value'
  readonly observed: string
  readonly needed?: string
  readonly next?: string
}

type Issue = z.core.$ZodIssue

/** Our words for what zod found in `raw`. `show` prints a value at a path, without secrets. */
export function problemsOf(issues: readonly Issue[], raw: unknown, show: (path: Path) => string): readonly Problem[] {
  const schema = jsonSchema()
  return issues.flatMap((issue) => problems(issue, issue.path.map(plain), raw, schema, show))
}

const plain = (part: PropertyKey): string | number => (typeof part === 'symbol' ? String(part) : part)

function problems(
  issue: Issue,
  path: Path,
  raw: unknown,
  schema: JsonSchema,
  show: (path: Path) => string,
): readonly Problem[] {
  const here = schemaAt(schema, path, raw)
  const value = valueAt(raw, path)
  if (issue.code === 'unrecognized_keys') {
    const known = Object.keys(here?.properties ?? {})
    return issue.keys.map((key) => unknownKey(path, key, known))
  }
  if (issue.code === 'invalid_union') {
    // The branch that fits what was written tells more than "no branch fits".
    const [first] = issue.errors
      .map((branch) => branch.filter((inner) => inner.code !== 'invalid_type' || inner.path.length > 0))
      .filter((branch) => branch.length > 0)
    if (first && typeof value === 'object')
      return first.flatMap((inner) => problems(inner, [...path, ...inner.path.map(plain)], raw, schema, show))
  }
  if (value === undefined) {
    const needed = here?.description?.replace(/^(.*?[.:;]) .*$/s, '$1').replace(/[.:;]$/, '')
    const key = path.at(-1)
    return [
      {
        path,
        on: 'value',
        observed: 'missing',
        ...(needed !== undefined && { needed }),
        next: `Add ${key}: …`,
      },
    ]
  }
  if (value === null) return [{ path, on: 'key', observed: 'has no value', needed: expected(here, issue) }]
  const choices = choicesOf(here)
  const near = typeof value === 'string' ? nearest(value, choices) : undefined
  return [
    {
      path,
      on: 'value',
      observed: show(path),
      needed: expected(here, issue),
      ...(near !== undefined && { next: `Did you mean ${near}?` }),
      ...(typeof value === 'string' &&
        here?.type === 'integer' &&
        /^\d+$/.test(value) && { next: 'Write the number without quotes' }),
      ...(typeof value === 'number' && here?.type === 'string' && { next: 'Write it in quotes' }),
    },
  ]
}

export function unknownKey(parent: Path, key: string, known: readonly string[]): Problem {
  const near = nearest(key, known)
  return {
    path: [...parent, key],
    on: 'key',
    observed: 'unknown key',
    ...(known.length > 0 && {
      next: near === undefined ? `Keys here: ${known.join(', ')}` : `Did you mean ${near}?`,
    }),
  }
}

function expected(schema: JsonSchema | undefined, issue: Issue): string {
  const [example] = schema?.examples ?? []
  if (example !== undefined && (issue.code === 'invalid_type' || issue.code === 'too_small'))
    return `a text such as ${JSON.stringify(example)}`
  const choices = choicesOf(schema)
  if (choices.length > 1) return `one of ${choices.join(', ')}`
  if (schema?.range !== undefined) return `a size from ${schema.range}, such as 4MiB`
  if (schema?.type === 'integer' && schema.minimum !== undefined && schema.maximum !== undefined)
    return `a whole number from ${schema.minimum} to ${schema.maximum}`
  if (issue.code === 'invalid_type') {
    const types: Readonly<Record<string, string>> = {
      string: 'a text',
      boolean: 'true or false',
      array: 'a list in [ ]',
      object: 'a mapping of keys to values',
    }
    return types[issue.expected] ?? issue.expected
  }
  if (issue.code === 'invalid_union') return 'true, false, or a mapping'
  return issue.message.replace(/^(expected|must be|needs) /, '')
}

function choicesOf(schema: JsonSchema | undefined): readonly string[] {
  if (schema?.enum) return schema.enum.map((choice) => `${choice as string}`)
  return schema?.const === undefined ? [] : [`${schema.const as string}`]
}

function valueAt(raw: unknown, path: Path): unknown {
  return path.reduce<unknown>(
    (value, key) =>
      typeof value === 'object' && value !== null && Object.hasOwn(value, key)
        ? (value as Readonly<Record<string | number, unknown>>)[key]
        : undefined,
    raw,
  )
}

/** The part of the schema that speaks of `path`; of alternatives the one whose `type` is written, else the one with such a key. */
function schemaAt(schema: JsonSchema, path: Path, raw: unknown): JsonSchema | undefined {
  let here: JsonSchema | undefined = schema
  for (const [depth, key] of path.entries()) {
    here = typeof key === 'number' ? here?.items : property(choose(here, valueAt(raw, path.slice(0, depth))), key)
  }
  return choose(here, valueAt(raw, path))
}

function choose(schema: JsonSchema | undefined, value: unknown): JsonSchema | undefined {
  const choices = schema?.oneOf ?? schema?.anyOf
  if (!choices || schema?.range !== undefined) return schema
  const type = typeof value === 'object' && value !== null && 'type' in value ? value.type : undefined
  const mappings = choices.filter((choice) => choice.properties)
  const named = mappings.find((choice) => choice.properties?.['type']?.const === type)
  if (named) return named
  if (mappings.length === 1) return mappings[0]
  // Not decided yet: what may stand for `type` is then all of them.
  return { properties: { type: { enum: mappings.map((choice) => choice.properties?.['type']?.const) } } }
}

const property = (schema: JsonSchema | undefined, key: string): JsonSchema | undefined =>
  schema?.properties && Object.hasOwn(schema.properties, key) ? schema.properties[key] : undefined
