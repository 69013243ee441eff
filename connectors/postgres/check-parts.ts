import type { Finding } from '../../src/connector.ts'
import type { TypeParts } from '../../src/model.ts'
import { finding } from './check.ts'
import { fits } from './fits.ts'
import { ident, literal } from './queries.ts'

/** Types of the users' own that are there at both ends under one name: a value with a label or a field that the target's lacks would be refused in
 *  mid-stream. `target`: of the target's tables. */
export function checkParts(
  source: readonly TypeParts[],
  target: readonly TypeParts[],
  categories: ReadonlyMap<string, string | null>,
): readonly Finding[] {
  const there = new Map(target.map((type) => [type.type, type]))
  return source.flatMap((type) => {
    const at = there.get(type.type)
    if (at === undefined || at.kind !== type.kind) return []
    return type.kind === 'labels' ? labels(type, at) : fields(type, at, categories)
  })
}

function labels({ type, parts }: TypeParts, at: TypeParts): readonly Finding[] {
  const names = parts.map(({ name }) => name)
  const there = at.parts.map(({ name }) => name)
  const known = new Set(there)
  const missing = names.filter((name) => !known.has(name))
  if (missing.length > 0) {
    const first = names.find((name) => known.has(name))
    const statement = (name: string): string => {
      const before = names[names.indexOf(name) - 1]
      const place =
        before !== undefined ? ` AFTER ${literal(before)}` : first === undefined ? '' : ` BEFORE ${literal(first)}`
      return `ALTER TYPE ${type} ADD VALUE ${literal(name)}${place};`
    }
    return [
      finding(
        'target.shape',
        'blocker',
        `type ${type} has no label ${missing.map(literal).join(', ')}: a row with it would be refused`,
        'the labels of the source',
        missing.map(statement).join('\n'),
      ),
    ]
  }
  const wanted = new Set(names)
  if (there.filter((name) => wanted.has(name)).join('\n') === names.join('\n')) return []
  const observed = `the labels of type ${type} are in another order: values sort otherwise`
  return [finding('target.shape', 'warning', observed, names.map(literal).join(', '))]
}

function fields(
  { type, parts }: TypeParts,
  at: TypeParts,
  categories: ReadonlyMap<string, string | null>,
): readonly Finding[] {
  const print = (all: TypeParts['parts']): string =>
    all.map(({ name, type = '' }) => `${ident(name)} ${type}`).join(', ')
  // A row's text has neither names nor types: fields are taken by their places.
  const same = parts.length === at.parts.length && parts.every(({ name }, i) => name === at.parts[i]?.name)
  const worst = parts.map(({ type = '' }, i) => fits(type, at.parts[i]?.type ?? '', categories))
  if (same && worst.every((fit) => fit === 'ok')) return []
  const begins = at.parts.every(({ name }, i) => name === parts[i]?.name && worst[i] === 'ok')
  return [
    finding(
      'target.shape',
      same && !worst.includes('blocker') ? 'warning' : 'blocker',
      `type ${type} is (${print(at.parts)})`,
      `(${print(parts)}), as at the source`,
      begins
        ? parts
            .slice(at.parts.length)
            .map(({ name, type: added }) => `ALTER TYPE ${type} ADD ATTRIBUTE ${ident(name)} ${added};`)
            .join('\n')
        : `Make type ${type} anew at the target with the fields of the source, and the columns that are made of it`,
    ),
  ]
}
