/** Numbers, times and columns as people read them. Nothing here colours or writes. */

const thousands = new Intl.NumberFormat('en-US')

/** 1,234,567 */
export function formatCount(value: number | bigint): string {
  return thousands.format(value)
}

/** At most four digits: 999, 12.3k, 148k, 1.2M */
export function formatShort(value: number | bigint): string {
  let left = Math.max(0, Number(value))
  if (left < 10 && !Number.isInteger(left)) return left.toFixed(1)
  for (const unit of ['', 'k', 'M', 'G', 'T']) {
    if (left < 999.5)
      return unit === '' || left >= 99.95 ? `${Math.round(left)}${unit}` : `${trim(left.toFixed(1))}${unit}`
    left /= 1000
  }
  return `${trim(left.toFixed(1))}P`
}

export function formatBytes(value: number | bigint): string {
  let left = Number(value)
  for (const unit of ['B', 'KiB', 'MiB', 'GiB']) {
    if (left < 1024) return unit === 'B' ? `${left} B` : `${trim(left.toFixed(left < 10 ? 1 : 0))} ${unit}`
    left /= 1024
  }
  return `${trim(left.toFixed(1))} TiB`
}

const trim = (text: string): string => text.replace(/\.0$/, '')

/** 0.4 s, 42 s, 3 min, 2 h 5 min, 3 d 4 h */
export function formatSeconds(seconds: number): string {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`
  if (seconds < 99.5) return `${Math.round(seconds)} s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 100) return `${minutes} min`
  const hours = Math.floor(minutes / 60)
  if (hours < 48) return `${hours} h ${minutes % 60} min`
  return `${Math.floor(hours / 24)} d ${hours % 24} h`
}

/** 0:32, 12:05, 1:02:09 */
export function formatClock(seconds: number): string {
  const whole = Math.floor(seconds)
  const two = (value: number): string => String(value).padStart(2, '0')
  const hours = Math.floor(whole / 3600)
  const minutes = Math.floor(whole / 60) % 60
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`
}

/** Two bounds in one unit: 25-31 s, 5-7 min, 2-3 h; a single figure where they round to the same. */
export function formatRange(low: number, high: number): string {
  const [unit, size] = high < 100 ? (['s', 1] as const) : high < 6000 ? (['min', 60] as const) : (['h', 3600] as const)
  const from = Math.max(1, Math.floor(low / size))
  const to = Math.max(from, Math.ceil(high / size))
  return from === to ? `${to} ${unit}` : `${from}-${to} ${unit}`
}

/** Names come from databases: what would steer a terminal is shown as its code. */
export function printable(text: string): string {
  // oxlint-disable-next-line no-control-regex
  return text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, (char) => {
    return `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`
  })
}

const segmenter = new Intl.Segmenter()
const letters = (text: string): readonly string[] => Array.from(segmenter.segment(text), ({ segment }) => segment)

export const widthOf = (text: string): number => letters(text).length

export function pad(text: string, width: number, side: 'left' | 'right' = 'left'): string {
  const blanks = ' '.repeat(Math.max(0, width - widthOf(text)))
  return side === 'left' ? text + blanks : blanks + text
}

/** At most `width` characters, the middle left out: the end of a name tells as much as its start. */
export function shorten(text: string, width: number): string {
  const chars = letters(text)
  if (chars.length <= width) return text
  const tail = Math.floor((width - 1) / 2)
  return [...chars.slice(0, width - 1 - tail), '…', ...(tail > 0 ? chars.slice(-tail) : [])].join('')
}

/** Lines of at most `width`, broken between words; a longer word stays whole, so that it can be copied. */
export function wrap(text: string, width: number): readonly string[] {
  return text.split('\n').flatMap((line) => {
    const lines: string[] = []
    let current = ''
    for (const word of line.split(' ')) {
      if (current !== '' && widthOf(current) + 1 + widthOf(word) > width) {
        lines.push(current)
        current = word
      } else current = current === '' ? word : `${current} ${word}`
    }
    return [...lines, current]
  })
}
