import { styleText } from 'node:util'

/** Tells what happens, a line at a time, with the seconds since the start; one line may move while something is under way. */
interface Story {
  title(text: string): void
  chapter(name: string): void
  done(text: string, remark?: string): void
  blow(text: string): void
  wrong(text: string): void
  moving(doing: string, share: number, text: string): void
  command(text: string): void
  output(text: string): void
  /** The moving line goes. */
  still(): void
  pair(table: string, source: number, target: number, digest: string, equal: boolean): void
  end(text: string, good: boolean): void
  number(value: number): string
  percent(share: number): string
}

const width = 24

export function story(out: NodeJS.WriteStream): Story {
  const began = performance.now()
  const inPlace = out.isTTY
  const paint = (style: Parameters<typeof styleText>[0], text: string): string =>
    styleText(style, text, { stream: out })
  let moved = false
  let saidAt = -Infinity
  const time = (): string => paint('dim', `${((performance.now() - began) / 1000).toFixed(1).padStart(6)} s`)
  const still = (): void => {
    if (moved && inPlace) out.write('\r\u001b[K')
    moved = false
  }
  const line = (mark: string, text: string): void => {
    still()
    out.write(`${time()}  ${mark} ${text}\n`)
  }
  const number = (value: number): string => value.toLocaleString('en-US')
  const percent = (share: number): string => `${Math.round(share * 100)} %`
  return {
    number,
    percent,
    still,
    title: (text) => void out.write(`\n  ${paint('bold', 'crossfade')}  ${text}\n\n`),
    chapter(name) {
      still()
      out.write(`\n  ${paint('bold', name)} ${paint('dim', '─'.repeat(60 - name.length))}\n`)
    },
    done(text, remark) {
      line(paint('green', '✓'), text)
      if (remark !== undefined) out.write(`            ${paint('dim', remark)}\n`)
    },
    blow: (text) => line(paint('red', '✗'), paint('red', text)),
    command: (text) => line(paint('cyan', '$'), paint('cyan', text)),
    output: (text) => void out.write(text.trimEnd().replace(/^(?=.)/gm, '    ') + '\n\n'),
    wrong: (text) => line(paint('red', '!'), text),
    moving(doing, share, text) {
      const full = Math.round(share * width)
      const bar = `${'█'.repeat(full)}${paint('dim', '░'.repeat(width - full))}`
      const body = `${time()}  ${paint('cyan', '▸')} ${doing.padEnd(11)} ${bar} ${percent(share).padStart(5)}  ${text}`
      // Without wrapping: a second row would not be taken away again.
      if (inPlace) out.write(`\r\u001b[K\u001b[?7l${body}\u001b[?7h`)
      else if (performance.now() - saidAt > 3000) {
        out.write(`${body}\n`)
        saidAt = performance.now()
      }
      moved = true
    },
    pair(table, source, target, digest, equal) {
      const mark = equal ? paint('green', '=') : paint('red', '≠')
      line(
        mark,
        `${table.padEnd(12)}${number(source).padStart(10)} ${equal ? paint('green', '=') : paint('red', '≠')} ${number(target).padEnd(10)} ${paint('dim', digest.slice(0, 12))}`,
      )
    },
    end(text, good) {
      still()
      out.write(`\n  ${paint(good ? ['bold', 'green'] : ['bold', 'red'], text)}\n\n`)
    },
  }
}
