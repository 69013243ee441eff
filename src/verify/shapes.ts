import type { ShapeEntry, ShapeKind } from '../model.ts'
import type { Verdict } from './journal.ts'

/** For whoever switches over: the application would break or rows would be wrong; something is slower or otherwise than before; nothing comes of it.
 *  `unknown`: it may be on its way. */
export type Severity = 'blocker' | 'warning' | 'note' | 'unknown'
/** `part`: what differs of an object that both ends have; `source` and `target` tell that, or the whole object of the end that has it. */
export type ShapeDifference = {
  readonly severity: Severity
  readonly kind: ShapeKind
  readonly table: string
  readonly name: string
  readonly what: 'missing' | 'added' | 'different'
  readonly part?: string
  readonly source?: string
  readonly target?: string
  /** What is to be said of it beside. */
  readonly why?: string
}
/** `streams`: changes are followed, no cutover was yet. `live`: the table's copy is complete. */
export type Situation = { readonly streams: boolean; readonly live: (table: string) => boolean }

type Pair = { readonly source: ShapeEntry; readonly target: ShapeEntry }
type Judged = Severity | readonly [Severity, string] | undefined
type Rule = {
  /** Not at the target. */
  readonly missing: (entry: ShapeEntry, situation: Situation) => Judged
  /** Only there. */
  readonly added: (entry: ShapeEntry) => Judged
  /** Of one name, and not the same. */
  readonly other?: Severity
  /** The same, and of another name. */
  readonly renamed?: Severity
  /** Of an object of both ends, each that differs. What is not here is not compared. */
  readonly parts: Readonly<Record<string, Severity | ((pair: Pair, situation: Situation) => Judged)>>
}

const always =
  (severity: Judged): (() => Judged) =>
  () =>
    severity
const part = (entry: ShapeEntry, name: string): string => entry.parts[name] ?? ''
/** Worse where only the target lacks it. */
const lost =
  (name: string, without: string, severity: Severity): ((pair: Pair) => Judged) =>
  ({ target }) =>
    part(target, name) === without ? severity : 'note'
const isInvalid = (entry: ShapeEntry): boolean => part(entry, 'valid') === 'no'
const given = (entry: ShapeEntry): boolean =>
  ['default', 'identity', 'generated'].some((name) => part(entry, name) !== '')
const atCutover = 'it would act on rows that are applied: it is to be made with the cutover'

function constraint(missing: Rule['missing']): Rule {
  return {
    missing,
    added: always('blocker'),
    other: 'blocker',
    renamed: 'note',
    parts: {
      enforced: 'blocker',
      validated: ({ source, target }) =>
        part(source, 'enforced') === part(target, 'enforced')
          ? part(target, 'validated') === 'no'
            ? 'warning'
            : 'note'
          : undefined,
    },
  }
}
const acting: Rule = {
  missing: (entry, { streams }) =>
    part(entry, 'enabled') === 'no' ? 'note' : streams && acts(entry) ? ['warning', atCutover] : 'blocker',
  added: (entry) => (part(entry, 'enabled') === 'no' ? 'note' : entry.kind === 'trigger' ? 'warning' : 'blocker'),
  parts: { definition: 'blocker', enabled: 'warning' },
}
const acts = ({ kind, parts }: ShapeEntry): boolean =>
  kind === 'rule' || parts['enabled'] === 'always' || parts['enabled'] === 'for replicated rows'

const rules: Readonly<Record<ShapeKind, Rule>> = {
  table: {
    missing: always('blocker'),
    added: always('note'),
    parts: { kind: 'blocker', 'partition key': 'blocker', 'row security': 'blocker', options: 'note' },
  },
  column: {
    missing: always('blocker'),
    added: (entry) =>
      part(entry, 'nullable') === 'yes' || given(entry)
        ? 'warning'
        : ['blocker', 'it needs a value, and nobody gives it one'],
    parts: {
      type: ({ target }) => (['ok', 'warning'].includes(part(target, 'takes')) ? 'warning' : 'blocker'),
      nullable: (both) =>
        part(both.source, 'nullable') === 'yes' || part(both.target, 'nullable') === 'yes'
          ? 'blocker'
          : lost('nullable', 'not in new rows', 'warning')(both),
      default: ({ source, target }) => {
        if (part(source, 'identity') !== part(target, 'identity') && given(source) && given(target)) return undefined
        return part(source, 'default') === '' ? 'warning' : 'blocker'
      },
      identity: ({ target }) => (part(target, 'identity') === 'always' || !given(target) ? 'blocker' : 'warning'),
      generated: ({ target }) =>
        part(target, 'generated') === ''
          ? ['blocker', 'nothing fills it: it is not part of what is copied']
          : 'blocker',
      stored: ({ source, target }) =>
        part(source, 'generated') === '' || part(target, 'generated') === '' ? undefined : 'note',
      equality: 'blocker',
      collation: ({ source, target }) =>
        part(source, 'equality') === part(target, 'equality') ? 'warning' : undefined,
    },
  },
  unique: {
    missing: (entry) => (isInvalid(entry) ? 'note' : 'blocker'),
    added: (entry) => (isInvalid(entry) ? 'note' : 'blocker'),
    other: 'blocker',
    renamed: 'note',
    parts: {
      valid: lost('valid', 'no', 'blocker'),
      as: ({ source }) => (part(source, 'as') === 'a primary key' ? 'warning' : 'note'),
      columns: 'warning',
      include: 'warning',
      deferrable: 'blocker',
      options: 'note',
    },
  },
  exclusion: constraint(always('blocker')),
  check: constraint(always('blocker')),
  'foreign key': constraint((entry) =>
    part(entry, 'foreign') === '' ? 'blocker' : ['warning', 'it refers to a table that is not part of the pipeline'],
  ),
  index: {
    missing: (entry) => (isInvalid(entry) ? 'note' : 'warning'),
    added: always('note'),
    other: 'warning',
    renamed: 'note',
    parts: { valid: lost('valid', 'no', 'warning'), options: 'note' },
  },
  sequence: {
    missing: always('blocker'),
    added: always('note'),
    other: 'warning',
    renamed: 'warning',
    parts: {
      next: ({ source, target }, { streams }) => {
        const more = BigInt(part(target, 'next')) > BigInt(part(source, 'next'))
        const ahead = more !== part(source, 'increment').startsWith('-')
        return ahead ? 'note' : streams ? ['note', 'it is set at the cutover'] : 'blocker'
      },
      type: 'warning',
      increment: 'warning',
      min: 'warning',
      max: 'warning',
      cycle: 'warning',
      start: 'note',
      cache: 'note',
    },
  },
  trigger: acting,
  rule: acting,
  policy: acting,
  parent: {
    missing: (entry) => (part(entry, 'foreign') === '' ? 'blocker' : 'note'),
    added: always('warning'),
    parts: { bound: 'blocker' },
  },
  // The columns that are of another one tell where these are missing.
  type: {
    missing: always(undefined),
    added: always(undefined),
    parts: {
      labels: ({ source, target }) => (isWithin(part(source, 'labels'), part(target, 'labels')) ? 'note' : 'blocker'),
      definition: 'blocker',
      default: 'blocker',
      functions: 'warning',
    },
  },
  extension: { missing: always('note'), added: always('note'), parts: { version: 'note' } },
  collation: {
    missing: always(undefined),
    added: always(undefined),
    parts: {
      locale: 'warning',
      deterministic: 'blocker',
      version: ({ source, target }) => {
        if (part(source, 'locale') !== part(target, 'locale')) return undefined
        const known = part(source, 'version') !== '' && part(target, 'version') !== ''
        return known ? 'warning' : ['note', 'one end does not tell it']
      },
      encoding: 'warning',
    },
  },
}

/** Whether the labels are among the others in their order. */
function isWithin(labels: string, others: string): boolean {
  const rest = (JSON.parse(others) as readonly string[]).values()
  return (JSON.parse(labels) as readonly string[]).every((label) => rest.some((other) => other === label))
}

/** Made only once the rows are in. */
const late = new Set<ShapeKind>([
  'unique',
  'exclusion',
  'check',
  'foreign key',
  'index',
  'trigger',
  'rule',
  'policy',
  'parent',
])

/** Each difference of the target from the source, the worst first. */
export function compareShapes(
  source: readonly ShapeEntry[],
  target: readonly ShapeEntry[],
  situation: Situation,
): readonly ShapeDifference[] {
  const here = Map.groupBy(source, groupOf)
  const there = Map.groupBy(target, groupOf)
  const everyone = new Set(source.map(({ table }) => table))
  const copying = [...everyone].some((table) => table !== '' && !situation.live(table))
  const isLate = ({ kind, table, parts }: ShapeEntry): boolean =>
    late.has(kind) && parts['as'] !== 'a primary key' && (!situation.live(table) || (kind === 'foreign key' && copying))
  const found: (ShapeDifference & { readonly of?: string })[] = []
  for (const key of new Set([...here.keys(), ...there.keys()])) {
    const [pairs, missing, added] = pair(here.get(key) ?? [], there.get(key) ?? [])
    for (const both of pairs) found.push(...between(both, situation))
    for (const entry of missing) {
      const judged = isLate(entry)
        ? (['note', 'it is made once the copy is complete'] as const)
        : rules[entry.kind].missing(entry, situation)
      found.push(...difference(entry, 'missing', judged, { source: entry.text }))
    }
    for (const entry of added)
      found.push(...difference(entry, 'added', rules[entry.kind].added(entry), { target: entry.text }))
    const order = pairs.filter(({ source }) => source.kind === 'column')
    found.push(...outOfOrder(order, here.get(key) ?? [], there.get(key) ?? []))
  }
  return withoutEchoes(found).toSorted(
    (a, b) => ranks.indexOf(a.severity) - ranks.indexOf(b.severity) || compareText(label(a), label(b)),
  )
}

const ranks: readonly Severity[] = ['blocker', 'unknown', 'warning', 'note']
const label = ({ table, kind, name, part = '' }: ShapeDifference): string => [table, kind, name, part].join('\n')
const compareText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0)
/** Sequences keep their names when others own them. */
const groupOf = ({ kind, table }: ShapeEntry): string => `${kind}\n${kind === 'sequence' ? '' : table}`

/** Which is which: the same under the same name, then the same, then of the same name; the rest is missing, or added. */
function pair(
  source: readonly ShapeEntry[],
  target: readonly ShapeEntry[],
): readonly [readonly Pair[], readonly ShapeEntry[], readonly ShapeEntry[]] {
  const pairs: Pair[] = []
  let missing = source
  let added = target
  const means = ({ means = '' }: ShapeEntry): string => means
  for (const by of [
    (one: ShapeEntry) => [one.table, one.name, means(one)].join('\n'),
    means,
    ({ name }: ShapeEntry) => name,
  ]) {
    const open = Map.groupBy(added, by)
    const rest: ShapeEntry[] = []
    for (const entry of missing) {
      const text = by(entry)
      const other = by === means && text === '' ? undefined : open.get(text)?.shift()
      if (other === undefined) rest.push(entry)
      else pairs.push({ source: entry, target: other })
    }
    const taken = new Set(pairs.map(({ target }) => target))
    missing = rest
    added = added.filter((entry) => !taken.has(entry))
  }
  return [pairs, missing, added]
}

type Found = ShapeDifference & { readonly of?: string }

function difference(
  { kind, table, name, of }: ShapeEntry,
  what: ShapeDifference['what'],
  judged: Judged,
  told: Pick<ShapeDifference, 'part' | 'source' | 'target'>,
): readonly Found[] {
  if (judged === undefined) return []
  const [severity, why] = typeof judged === 'string' ? [judged] : judged
  return [
    { severity, kind, table, name, what, ...told, ...(why !== undefined && { why }), ...(of !== undefined && { of }) },
  ]
}

function between(both: Pair, situation: Situation): readonly Found[] {
  const { source, target } = both
  const rule = rules[source.kind]
  const found: Found[] = []
  if (source.means !== target.means) {
    found.push(...difference(source, 'different', rule.other, { source: source.text, target: target.text }))
    // It is another one: there is nothing to be compared.
    if (source.kind !== 'sequence') return found
  } else if (source.name !== target.name)
    found.push(
      ...difference(source, 'different', rule.renamed, { part: 'name', source: source.name, target: target.name }),
    )
  for (const [name, judge] of Object.entries(rule.parts)) {
    if (part(source, name) === part(target, name)) continue
    const judged = typeof judge === 'string' ? judge : judge(both, situation)
    const shown = (entry: ShapeEntry): string => entry.shown?.[name] ?? part(entry, name)
    found.push(...difference(source, 'different', judged, { part: name, source: shown(source), target: shown(target) }))
  }
  return found
}

/** Columns of both ends in another order, which statements that name none would notice. */
function outOfOrder(
  pairs: readonly Pair[],
  source: readonly ShapeEntry[],
  target: readonly ShapeEntry[],
): readonly Found[] {
  const [first] = source
  if (first === undefined || pairs.length === 0) return []
  const both = new Set(pairs.map(({ source }) => source.name))
  const [here, there] = [source, target].map((all) =>
    all.flatMap(({ name }) => (both.has(name) ? name : [])).join(', '),
  )
  if (here === undefined || there === undefined || here === there) return []
  return [
    {
      severity: 'warning',
      kind: 'table',
      table: first.table,
      name: '',
      what: 'different',
      part: 'order of columns',
      source: here,
      target: there,
    },
  ]
}

/** Without what only says again that a table is another one, or what was said of the table that something is inherited from. */
function withoutEchoes(found: readonly Found[]): readonly ShapeDifference[] {
  const others = new Set(
    found.flatMap(({ kind, table, what, part }) =>
      kind === 'table' && (what !== 'different' || part === 'kind') ? table : [],
    ),
  )
  const key = ({ kind, what, part, source, target }: Found, table: string): string =>
    JSON.stringify([kind, table, what, part, source, target])
  const said = new Set(found.map((one) => key(one, one.table)))
  return found.flatMap((one) => {
    const { of, ...told } = one
    if (one.kind !== 'table' && others.has(one.table)) return []
    return of !== undefined && said.has(key(one, of)) ? [] : told
  })
}

/** Of what the changes bring with them, so that it may be under way. */
export function isMovable({ kind, severity }: ShapeDifference): boolean {
  return (kind === 'column' || kind === 'table') && severity !== 'note'
}

/** Whether the application may be switched over to these definitions. */
export function verdictOfShapes(differences: readonly ShapeDifference[]): Verdict {
  if (differences.some(({ severity }) => severity === 'blocker')) return 'different'
  return differences.some(({ severity }) => severity === 'unknown') ? 'unknown' : 'equal'
}
