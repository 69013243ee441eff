import assert from 'node:assert/strict'
import { after, afterEach, beforeEach } from 'node:test'
import { until } from './processes.ts'

const watched: Readonly<Record<string, string>> = {
  TCPSocketWrap: 'socket',
  TCPServerWrap: 'listener',
  PipeWrap: 'pipe',
  ProcessWrap: 'child process',
  Timeout: 'timer',
  Immediate: 'immediate',
  FSReqCallback: 'file operation',
  MessagePort: 'worker',
}

/**
 * Fails a test that leaves sockets, listeners, children, timers or pipes behind, named by kind and number. What stood
 * open when the first test began (a client of the whole file, opened in `before`) may stay. Call it once in a file or
 * suite. Things closing get two seconds; what is unref'd does not count.
 */
export function noLeaks(): void {
  let base: Map<string, number> | undefined
  let since = 'the first test'
  // Not in a `before` of our own: in a file's root those do not wait for each other.
  beforeEach(() => {
    base ??= openHandles()
  })
  const check = async (): Promise<void> => {
    if (await until(() => grown(base).length === 0, 2_000)) return
    const left = grown(base)
    // Told once, not again by every test that follows.
    base = openHandles()
    assert.fail(`left open since ${since}: ${left.join(', ')}`)
  }
  afterEach(async (context) => {
    await check()
    since = 'name' in context ? `"${context.name}"` : since
  })
  after(check)
}

function openHandles(): Map<string, number> {
  const counts = new Map<string, number>()
  for (const kind of process.getActiveResourcesInfo()) {
    if (kind in watched) counts.set(kind, (counts.get(kind) ?? 0) + 1)
  }
  return counts
}

function grown(base: ReadonlyMap<string, number> = new Map()): string[] {
  const left: string[] = []
  for (const [kind, count] of openHandles()) {
    const more = count - (base.get(kind) ?? 0)
    if (more > 0) left.push(`${more} ${watched[kind] ?? kind}${more > 1 ? 's' : ''}`)
  }
  return left
}
