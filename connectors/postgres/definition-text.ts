/** A word of a definition, or what stands in a pair of parentheses or brackets. */
export type Piece = string | { readonly open: '(' | '['; readonly pieces: readonly Piece[] }
type Group = { readonly open: '(' | '['; readonly pieces: Piece[] }

const token =
  /\s+|[EeUu]?&?'(?:[^']|'')*'|"(?:[^"]|"")*"|[\p{L}_][\p{L}\p{N}_$]*|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|::|[-+*/<>=~!@#%^&|`?]+|[()[\]]|./suy
/** Between types of text a server adds casts and moves them when a definition is read again from its own print; they change no value. */
const textual = /\s*(?:text|character varying|bpchar)(?![\p{L}\p{N}_$.])(?:\(\d+\))?(?:\[\])*/uy

/** The words of a definition as a server prints it, without casts between types of text. */
export function piecesOf(text: string): readonly Piece[] {
  const stack: Group[] = [{ open: '(', pieces: [] }]
  let at = 0
  while (at < text.length) {
    if (text.startsWith('::', at)) {
      textual.lastIndex = at + 2
      if (textual.test(text)) {
        at = textual.lastIndex
        continue
      }
    }
    token.lastIndex = at
    const word = token.exec(text)?.[0] ?? text.charAt(at)
    at += word.length
    const top = stack.at(-1)
    if (word === '(' || word === '[') {
      const group: Group = { open: word, pieces: [] }
      top?.pieces.push(group)
      stack.push(group)
    } else if (word === ')' || word === ']') {
      if (stack.length > 1) stack.pop()
    } else if (word.trim() !== '') top?.pieces.push(word)
  }
  return stack[0]?.pieces ?? []
}

/** One text for all prints of the same definition: parentheses around a single thing say nothing. */
export function plain(pieces: readonly Piece[]): string {
  return simple(pieces).map(print).join(' ')
}

/** `plain` of a definition as it is printed. */
export function plainText(text: string): string {
  return plain(piecesOf(text))
}

function simple(pieces: readonly Piece[]): readonly Piece[] {
  const found: Piece[] = []
  for (const piece of pieces) {
    if (typeof piece === 'string') {
      found.push(piece)
      continue
    }
    const within = simple(piece.pieces)
    const [only] = within
    const array = within.length === 2 && within[0] === 'ARRAY'
    if (piece.open === '(' && (array || (within.length === 1 && only !== undefined))) found.push(...within)
    else found.push({ open: piece.open, pieces: within })
  }
  return found
}

function print(piece: Piece): string {
  if (typeof piece === 'string') return piece
  return `${piece.open}${piece.pieces.map(print).join(' ')}${piece.open === '(' ? ')' : ']'}`
}

/** What stands between the commas. */
export function listed(pieces: readonly Piece[]): readonly (readonly Piece[])[] {
  const found: Piece[][] = [[]]
  for (const piece of pieces) {
    if (piece === ',') found.push([])
    else found.at(-1)?.push(piece)
  }
  return found
}

/** An index as `USING` and what follows says it. */
export type IndexText = {
  readonly method: string
  /** Of the columns, in their order, with operator class, collation and direction. */
  readonly columns: readonly string[]
  readonly include: string
  readonly nulls: string
  readonly options: string
  readonly where: string
}

export function indexText(using: string): IndexText {
  const pieces = piecesOf(using)
  const found = { include: '', nulls: '', options: '', where: '' }
  const inside = (piece: Piece | undefined): readonly Piece[] =>
    piece === undefined || typeof piece === 'string' ? [] : piece.pieces
  const texts = (piece: Piece | undefined): readonly string[] => listed(inside(piece)).map(plain)
  for (let i = 2; i < pieces.length; i++) {
    const piece = pieces[i]
    if (piece === 'INCLUDE') found.include = texts(pieces[++i]).toSorted().join(', ')
    else if (piece === 'NULLS') {
      found.nulls = plain(pieces.slice(i, i + 3))
      i += 2
    } else if (piece === 'WITH') found.options = texts(pieces[++i]).toSorted().join(', ')
    else if (piece === 'WHERE') {
      found.where = plain(pieces.slice(i + 1))
      break
    }
  }
  return { method: plain(pieces.slice(0, 1)), columns: texts(pieces[1]), ...found }
}
