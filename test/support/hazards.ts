/** A path in backticks that holds tests, followed by the quoted names of some of them. */
export const reference: RegExp = /`(test\/[^`]+\.ts)`((?:[:,]? "[^"]+")*)/g

export type Outcome = 'passed' | 'failed' | 'skipped'
/** `path`: the names of its suites, then its own. */
export type Told = { readonly file: string; readonly path: readonly string[]; readonly outcome: Outcome }

/** What docs/guarantees.md says of one hazard: whether it is held, and by which tests. */
export type Hazard = {
  readonly id: string
  readonly says: 'held' | 'in part' | 'not built' | 'rule only'
  readonly tests: readonly { readonly file: string; readonly name: string }[]
}
export type HazardRow = Hazard & {
  readonly counts: Readonly<Record<Outcome, number>>
  /** Named on the page, and not run. */
  readonly absent: readonly string[]
  readonly result: Outcome | 'incomplete' | 'not run' | 'not built' | 'no test'
}

export function readHazards(page: string): readonly Hazard[] {
  return [...page.matchAll(/^\| (H\d+) \| (.*) \|$/gm)].map(([, id = '', text = '']) => ({
    id,
    says: says(text),
    tests: namedTests(text),
  }))
}

function says(text: string): Hazard['says'] {
  if (text.startsWith('Held')) return 'held'
  if (text.startsWith('In part')) return 'in part'
  return text.startsWith('Not built') ? 'not built' : 'rule only'
}

export function namedTests(text: string): Hazard['tests'] {
  return [...text.matchAll(reference)].flatMap(([, file = '', names = '']) =>
    [...names.matchAll(/"([^"]+)"/g)].map(([, name = '']) => ({ file, name })),
  )
}

/** Hazard by hazard, the tests that the page names or that say `H12:` or `H12, H13:` in their own or a suite's name. */
export function hazardTable(hazards: readonly Hazard[], told: readonly Told[]): readonly HazardRow[] {
  return hazards.map((hazard) => {
    const counts = { passed: 0, failed: 0, skipped: 0 }
    for (const test of told) {
      if (saysItself(hazard.id, test) || hazard.tests.some((named) => isNamed(named, test))) counts[test.outcome]++
    }
    const absent = hazard.tests.filter((named) => !told.some((test) => isNamed(named, test))).map(({ name }) => name)
    return { ...hazard, counts, absent, result: result(hazard, counts, absent.length) }
  })
}

function result({ says, tests }: Hazard, counts: HazardRow['counts'], absent: number): HazardRow['result'] {
  if (counts.failed > 0) return 'failed'
  if (counts.passed > 0) return absent + counts.skipped > 0 ? 'incomplete' : 'passed'
  if (counts.skipped > 0) return 'skipped'
  if (says === 'not built') return 'not built'
  return tests.length > 0 ? 'not run' : 'no test'
}

function saysItself(id: string, { path }: Told): boolean {
  return path.some((name) => /^H\d+(?:, H\d+)*(?=:)/.exec(name)?.[0].split(', ').includes(id))
}

/** A conformance test runs in the files of those that implement the seam; `…` stands for what a template fills in. */
function isNamed({ file, name }: Hazard['tests'][number], test: Told): boolean {
  if (file.endsWith('.test.ts') && file !== test.file) return false
  const [start = '', ...rest] = name.split('…')
  return test.path.some((each) => (rest.length === 0 ? each === name : each.startsWith(start)))
}

export function renderHazards(rows: readonly HazardRow[]): string {
  const line = (cells: readonly (string | number)[]): string => {
    const [id = '', says = '', passed = '', failed = '', skipped = '', text = ''] = cells
    const numbers = [passed, failed, skipped].map((cell) => String(cell).padStart(8)).join('')
    return `${String(id).padEnd(8)}${String(says).padEnd(10)}${numbers}  ${text}`.trimEnd()
  }
  return [
    line(['hazard', 'docs', 'passed', 'failed', 'skipped', 'result']),
    ...rows.map(({ id, says, counts, result, absent }) => {
      const why = absent.length > 0 ? `: ${absent.length} named not run` : ''
      return line([id, says, counts.passed, counts.failed, counts.skipped, `${result}${why}`])
    }),
  ].join('\n')
}
