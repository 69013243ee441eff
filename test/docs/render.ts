// Writes what follows from definitions in the sources: `node test/docs/render.ts`. docs.test.ts holds the files to it.
import { writeFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { editorSchema, jsonSchema, type JsonSchema } from '../../src/config/pipeline-config.ts'
import { codes, type Code } from '../../src/errors.ts'

const root = resolve(import.meta.dirname, '../..')

/** Every generated file by its path in the checkout. */
export const generated: Readonly<Record<string, () => string>> = {
  'docs/config.md': configPage,
  'docs/errors.md': errorsPage,
  'schemas/config.schema.json': () => `${JSON.stringify(editorSchema(), undefined, 2)}\n`,
}

function configPage(): string {
  const rows = rowsOf(jsonSchema(), '').map((cells) => `| ${cells.join(' | ')} |`)
  return `# The configuration file

One YAML file is one pipeline. \`crossfade init\` writes a commented one, \`crossfade check\` says what is wrong with it and with the databases it names. Every mistake is
reported at once, with file, line and column. Editors check it by \`schemas/config.schema.json\`, which \`init\` also puts beside the file.

This page is made from the definition in \`src/config/pipeline-config.ts\`.

## Keys

| Key | Value | Default | Meaning |
|---|---|---|---|
${rows.join('\n')}

Sizes are whole numbers of bytes, or have one of the units \`B\`, \`KiB\`, \`MiB\`, \`GiB\`. Paths are resolved from the folder of the file, and \`.crossfade\` in it is where this
machine keeps what it needs (logs of the live view, spilled transactions, the embedded log).

## Keys of a \`postgres\` source, target or state

| Key | Meaning |
|---|---|
| \`url\` | \`postgres://user:password@host:5432/database\`; \`sslmode\`, \`sslrootcert\`, \`sslcert\` and \`sslkey\` are understood as parameters. Beyond this machine TLS is used, and the server has to prove its name. |
| \`tls.ca\`, \`tls.cert\`, \`tls.key\` | Files with the certificates trusted, the client's certificate and its key; read at each connection. |
| \`tls.allowInsecure\` | A host name: connections to it may go without TLS, or without a proof of which server answers. |

## References

| Written | Stands for |
|---|---|
| \`\${env:NAME}\` | the environment variable; an error if it is not set |
| \`\${env:NAME:-default}\` | the environment variable, or the default if it is not set or empty |
| \`\${file:PATH}\` | the content of a file, without a last line feed |
| \`$\${\` | \`\${\` itself |

References stand inside values, not keys, and in quotes within \`{ }\` and \`[ ]\`. What they stand for is never read as YAML or searched for references. Passwords in addresses,
and values of keys such as \`password\`, are shown as \`***\` wherever crossfade prints.

## Patterns of tables

\`schema.table\`, split at the first dot. Each part has to match the whole name as the catalog has it, upper and lower case apart: \`*\` any characters, \`?\` one, \`[abc]\` one of
these. A part in double quotes is taken as it is (\`"My.Schema".*\`). \`*.*\` is every user table. What \`exclude\` matches stays out, whatever \`include\` says. A partition
is matched by the name of each table above it as well as by its own: the root alone names all of them, and one can be left out. crossfade's own
schema \`crossfade\` always does.
`
}

type Cells = readonly [key: string, value: string, fallback: string, meaning: string]

function rowsOf(schema: JsonSchema, prefix: string): readonly Cells[] {
  return Object.entries(schema.properties ?? {}).flatMap(([key, inner]) => {
    const path = `${prefix}${key}`
    const needed = schema.required?.includes(key) ? '**required**' : ''
    const { properties, items } = inner
    const branches = inner.range === undefined ? (inner.oneOf ?? inner.anyOf) : undefined
    const fallback = inner.default === undefined || properties ? needed : `\`${JSON.stringify(inner.default)}\``
    const own: Cells = [`\`${path}\``, escape(valueOf(inner)), fallback, inner.description ?? '']
    if (properties) return [own, ...rowsOf(inner, `${path}.`)]
    if (branches) return [own, ...branchRows(branches, path)]
    if (items?.properties) return [own, ...rowsOf(items, `${path}[].`)]
    return [own]
  })
}

/** Keys of alternatives, each once for every alternative that has it in its own way. */
function branchRows(branches: readonly JsonSchema[], path: string): readonly Cells[] {
  const seen = new Set<string>()
  return branches
    .flatMap((branch) => {
      const type = branch.properties?.['type']?.const
      return rowsOf(branch, `${path}.`).map(([key, value, fallback, meaning]): Cells => {
        const only = typeof type === 'string' && key !== `\`${path}.type\`` ? ` (\`${type}\`)` : ''
        const shared = branches.every(
          ({ properties }) => properties && Object.hasOwn(properties, key.slice(path.length + 2, -1)),
        )
        return [shared ? key : `${key}${only}`, value, key === `\`${path}.type\`` ? '' : fallback, meaning]
      })
    })
    .filter((cells) => {
      const name = cells.join('|')
      return !seen.has(name) && seen.add(name)
    })
}

function valueOf(schema: JsonSchema): string {
  if (schema.range !== undefined) return `size, ${schema.range}`
  if (schema.const !== undefined) return `\`${JSON.stringify(schema.const).replaceAll('"', '')}\``
  if (schema.enum) return schema.enum.map((choice) => `\`${JSON.stringify(choice).replaceAll('"', '')}\``).join(', ')
  if (schema.type === 'integer') return `${schema.minimum} to ${schema.maximum}`
  if (schema.type === 'array') return `list of texts`
  if (schema.type === 'boolean') return '`true`, `false`'
  if (schema.type === 'string')
    return schema.pattern === undefined ? 'text' : `\`${schema.pattern.replace(/^\^|\$$/g, '')}\``
  if (schema.anyOf && !schema.anyOf.every(({ properties }) => properties)) return '`true`, `false`, or a mapping'
  return 'mapping'
}

const escape = (text: string): string => text.replaceAll('|', '\\|')

function errorsPage(): string {
  const policies: Readonly<Record<Code['policy'], string>> = {
    retry:
      'tried again with growing pauses, for ever; before `run` has begun it ends at once, because what hinders a start is for you to see',
    operator: 'the run ends; run again when the cause is mended',
    stop: 'the run ends; nothing further is written until you decide',
    bug: 'the run ends; a defect of ours',
  }
  const rows = Object.entries(codes).map(
    ([code, { policy, exit, meaning, next }]) => `| \`${code}\` | ${meaning} | \`${policy}\` | ${exit} | ${next} |`,
  )
  return `# Errors

Every error has a code from this list, which is permanent: scripts and alerts may rely on it, while the words around it may change. An error says what it is about, what was
observed and what is needed, what happens now, and what to do next; with \`--json\` the same as \`{"v":1,"error":{...}}\`.

This page is made from the table in \`src/errors.ts\`.

| Policy | What crossfade does |
|---|---|
${Object.entries(policies)
  .map(([policy, what]) => `| \`${policy}\` | ${what} |`)
  .join('\n')}

| Code | Meaning | Policy | Exit | What to do |
|---|---|---|---|---|
${rows.join('\n')}

## Exit codes

| Exit | Meaning |
|---|---|
| 0 | done; with \`run\` also: stopped cleanly by a signal |
| 1 | failed, or blocked; of \`verify\` and \`repair\` only: something differs |
| 2 | usage or configuration |
| 3 | something could not be checked or verified, so nothing is proved |
| 5 | a server cannot be reached, or a right is missing |
| 130, 143 | ended at once by a second SIGINT or SIGTERM, \`verify\` and \`repair\` by the first; the next one carries on where this one was |
`
}

if (import.meta.main)
  for (const [path, render] of Object.entries(generated)) writeFileSync(resolve(root, path), render())
