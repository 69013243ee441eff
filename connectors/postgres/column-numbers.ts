import type { Relation } from './pgoutput.ts'
import { byNumber, isSentAs, type SentColumn } from './shape.ts'
import type { Shape, ShapeColumn } from './source-queries.ts'

/** A row's transaction, the look at the catalog before it, and one after. */
export type Between = { readonly before: Shape; readonly now: Shape; readonly xid: number }

type Place = {
  readonly number: number
  /** At both looks, so at every moment between them. */
  readonly stays: boolean
  /** Came after the first look. */
  readonly added: boolean
  /** There at the second look: whatever is added after it stands beside it. */
  readonly alive: boolean
  /** Definitions it has had at the looks; not all if it was touched between them. */
  readonly known: readonly ShapeColumn[]
  readonly untouched: boolean
  /** The transaction that brought it, or took it away. */
  readonly by: number
}

/** Which columns a Relation message is about: they keep their numbers for ever, and stand in their order. Where that leaves more than one reading, names,
 *  types and the order of transactions must agree on one. */
export function numbersOf(relation: Relation, { before, now, xid }: Between): readonly number[] | string {
  const places = placesOf(before, now)
  const possible = ({ untouched, known }: Place, sent: SentColumn): boolean =>
    !untouched || known.some((column) => isSentAs(column, sent))
  const proved = assign(relation.columns, places, possible, ({ stays }) => !stays)
  if (proved.ways === 0) return 'its columns were changed several times'
  if (proved.ways === 1) return proved.numbers
  const since = ({ by }: Place): number => (by - xid) | 0
  const likely =
    (typed: boolean) =>
    (place: Place, sent: SentColumn): boolean => {
      const { known, alive } = place
      if (!possible(place, sent) || (!alive && since(place) < 0)) return false
      if (known.length === 0) return true
      const named = known.some(({ name }) => name === sent.name)
      return named && (!typed || known.some(({ type, typmod }) => type === sent.typeOid && typmod === sent.typmod))
    }
  const absent = (place: Place): boolean => {
    if (place.stays) return false
    if (!place.added) return since(place) <= 0
    return !place.alive || since(place) >= 0
  }
  // A column may have had a third type in between: types decide only where names do not.
  let agreed = assign(relation.columns, places, likely(false), absent)
  if (agreed.ways > 1) agreed = assign(relation.columns, places, likely(true), absent)
  return agreed.ways === 1 ? agreed.numbers : 'its columns can be told apart in more than one way'
}

function placesOf(before: Shape, now: Shape): readonly Place[] {
  const older = byNumber(before)
  const newer = byNumber(now)
  const gone = new Set(before.dropped.map(({ number }) => number))
  const dropped = new Map(now.dropped.map(({ number, touched }) => [number, touched]))
  const numbers = new Set([...older.keys(), ...newer.keys(), ...dropped.keys()])
  return [...numbers]
    .filter((number) => !gone.has(number))
    .toSorted((a, b) => a - b)
    .flatMap((number): Place[] => {
      const [old, fresh] = [older.get(number), newer.get(number)]
      const known = [old, fresh].filter((column) => column?.generated === '') as ShapeColumn[]
      // A computed column is never sent.
      if (known.length === 0 && (old !== undefined || fresh !== undefined)) return []
      const stays = known.length === 2
      const untouched = stays && old?.touched === fresh?.touched
      const by = Number(fresh?.touched ?? dropped.get(number) ?? 0) | 0
      return [{ number, stays, added: old === undefined, alive: fresh !== undefined, known, untouched, by }]
    })
}

/** The numbers of the columns sent, in rising order, and whether there are none, one or two and more ways. */
function assign(
  sent: readonly SentColumn[],
  places: readonly Place[],
  may: (place: Place, sent: SentColumn) => boolean,
  absent: (place: Place) => boolean,
): { readonly ways: number; readonly numbers: readonly number[] } {
  // Of the columns from i on to the places from j on; after one that came and stayed was left out, none that came later can be there.
  const width = places.length + 1
  const ways = new Uint8Array(2 * (sent.length + 1) * width)
  const slot = (i: number, j: number, left: number): number => 2 * (i * width + j) + left
  const step = (i: number, j: number, left: number): { readonly take: number; readonly skip: number } => {
    const place = places[j]
    const column = sent[i]
    if (place === undefined) return { take: 0, skip: 0 }
    const free = column !== undefined && !(place.added && left === 1) && may(place, column)
    const leaves = place.added && place.alive ? 1 : left
    return {
      take: free ? (ways[slot(i + 1, j + 1, left)] ?? 0) : 0,
      skip: !absent(place) ? 0 : (ways[slot(i, j + 1, leaves)] ?? 0),
    }
  }
  for (const left of [0, 1]) ways[slot(sent.length, places.length, left)] = 1
  for (let i = sent.length; i >= 0; i--)
    for (let j = places.length - 1; j >= 0; j--)
      for (const left of [0, 1]) {
        const { take, skip } = step(i, j, left)
        ways[slot(i, j, left)] = Math.min(2, take + skip)
      }
  const numbers: number[] = []
  for (let i = 0, j = 0, left = 0; j < places.length && numbers.length < sent.length; j++) {
    const place = places[j]
    if (step(i, j, left).take > 0) {
      numbers.push(place?.number ?? 0)
      i++
    } else if (place?.added === true && place.alive) left = 1
  }
  return { ways: ways[slot(0, 0, 0)] ?? 0, numbers }
}
