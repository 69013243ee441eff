const integers = ['smallint', 'integer', 'bigint', 'numeric']
const floats = ['real', 'double precision']
const exact: Readonly<Record<string, readonly string[]>> = {
  real: ['smallint'],
  'double precision': ['smallint', 'integer'],
}
const length = /^(character varying|character|bpchar|bit varying|bit)\((\d+)\)(.*)$/
const precise = /^(numeric|timestamp|time|interval)(?:\((\d+)(?:,(-?\d+))?\))?(.*)$/
const temporal = /^(?:timestamp|time|date)\b/
/** Digits of a second where none are declared. */
const seconds = 6

/** Whether every value of the source's type is a value of the target's, both as declared. `blocker`: some would be refused, or, worse, rounded or cut
 *  without a word. `warning`: another type of the same kind, which may print or order its values otherwise. `categories`: typcategory by type. */
export function fits(
  source: string,
  target: string,
  categories: ReadonlyMap<string, string | null>,
): 'ok' | 'warning' | 'blocker' {
  if (source === target) return 'ok'
  for (const family of [integers, floats]) {
    const from = family.indexOf(source)
    const to = family.indexOf(target)
    if (from >= 0 && to >= 0) return from <= to ? 'ok' : 'blocker'
  }
  if (floats.includes(target)) return exact[target]?.includes(source) ? 'ok' : 'blocker'
  const bounded = length.exec(target)
  const given = length.exec(source)
  // Blanks beyond the length are cut without a word.
  if (bounded && (!given || Number(given[2]) > Number(bounded[2]))) return 'blocker'
  if (bounded && given && bounded[1]?.endsWith('varying') && bounded[1] === given[1] && bounded[3] === given[3])
    return 'ok'
  const rounded = rounds(source, target)
  if (rounded !== undefined) return rounded ? 'blocker' : 'ok'
  // Between dates, times and both a part is left out.
  if (temporal.test(source) && temporal.test(target) && baseOf(source) !== baseOf(target)) return 'blocker'
  if (target === 'text' || target === 'character varying') return 'ok'
  const category = categories.get(source)
  return category !== undefined && category !== null && category === categories.get(target) ? 'warning' : 'blocker'
}

/** Whether values lose digits; undefined unless the types differ in their precision alone. */
function rounds(source: string, target: string): boolean | undefined {
  const from = precise.exec(source)
  const to = precise.exec(target)
  if (!from || !to || from[1] !== to[1] || from[4] !== to[4]) return undefined
  if (to[2] === undefined) return false
  if (to[1] !== 'numeric') return Number(from[2] ?? seconds) > Number(to[2])
  if (from[2] === undefined) return true
  const scales = [Number(from[3] ?? 0), Number(to[3] ?? 0)] as const
  return scales[0] > scales[1] || Number(from[2]) - scales[0] > Number(to[2]) - scales[1]
}

function baseOf(type: string): string {
  return type.replace(/\(\d+\)/, '').replace(/ with(?:out)? time zone/, '')
}
