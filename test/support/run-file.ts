import { run } from 'node:test'
import type { TestEvent } from 'node:test/reporters'
import { inspect } from 'node:util'

interface Failure {
  readonly name: string
  /** file:line:column of the test. */
  readonly place: string
  readonly text: string
}

export interface FileResult {
  readonly file: string
  readonly ms: number
  readonly passed: number
  readonly failures: readonly Failure[]
  readonly skipped: readonly { readonly name: string; readonly reason: string }[]
  readonly slow: readonly { readonly name: string; readonly ms: number }[]
  /** Every test, suites' names before its own. */
  readonly tests: readonly { readonly path: readonly string[]; readonly outcome: 'passed' | 'failed' | 'skipped' }[]
  /** What the file printed, in order. */
  readonly output: string
  /** What its tests tell of themselves: faults that fired, seeds, times. */
  readonly told: readonly string[]
}

export interface FileLimits {
  readonly testMs: number
  readonly fileMs: number
  /** How long the process may live on with no test running. */
  readonly idleMs: number
  readonly slowMs: number
  readonly names: readonly string[]
}

/**
 * Runs one test file in a process of its own and counts its tests; suites count for nothing but their own failure.
 * A file that crashes, has no test, or does not end is a failure that bears the file's name.
 */
export async function runFile(file: string, limits: FileLimits, env: NodeJS.ProcessEnv): Promise<FileResult> {
  const started = Date.now()
  const failures: Failure[] = []
  const skipped: { name: string; reason: string }[] = []
  const slow: { name: string; ms: number }[] = []
  const tests: { path: readonly string[]; outcome: 'passed' | 'failed' | 'skipped' }[] = []
  const path: string[] = []
  const abort = new AbortController()
  const told: string[] = []
  let output = ''
  let passed = 0
  let open = 0
  let finished = 0
  let fileError: unknown
  let idle: NodeJS.Timeout | undefined
  const overall = setTimeout(
    () => abort.abort(new Error(`the file ran longer than ${limits.fileMs / 1000} s`)),
    limits.fileMs,
  )

  function watchForIdleness(): void {
    clearTimeout(idle)
    if (open > 0 || finished === 0) return
    idle = setTimeout(() => {
      abort.abort(new Error('the tests are done but the process lives on: a socket, timer or child was left open'))
    }, limits.idleMs)
  }

  function take(event: TestEvent): void {
    switch (event.type) {
      case 'test:stdout':
      case 'test:stderr':
        output += event.data.message
        return
      case 'test:diagnostic':
        if (event.data.file === undefined) return
        output += `${event.data.message}\n`
        told.push(event.data.message)
        return
      case 'test:dequeue':
        if (event.data.name !== file) open++
        return watchForIdleness()
      case 'test:complete':
        if (event.data.name === file) {
          if (!event.data.details.passed) fileError = event.data.details.error ?? 'the file failed'
          return
        }
        open--
        finished++
        return watchForIdleness()
      case 'test:start':
        path.length = event.data.nesting
        path.push(event.data.name)
        return
      case 'test:pass':
      case 'test:fail':
        if (event.data.name !== file) takeResult(event)
        return
      default:
    }
  }

  function takeResult(event: Extract<TestEvent, { type: 'test:pass' | 'test:fail' }>): void {
    const { data } = event
    const names = [...path.slice(0, data.nesting), data.name]
    const name = names.join(' > ')
    const ms = data.details.duration_ms
    const isSuite = data.details.type === 'suite'
    if (data.skip !== undefined && data.skip !== false) {
      tests.push({ path: names, outcome: 'skipped' })
      skipped.push({ name, reason: typeof data.skip === 'string' ? data.skip : '' })
    } else if (event.type === 'test:fail') {
      const { error } = event.data.details
      // The subtests have told already; the parent is counted once more only if it fails by itself.
      if ('failureType' in error && error.failureType === 'subtestsFailed') return
      tests.push({ path: names, outcome: 'failed' })
      failures.push({ name, place: `${data.file}:${data.line}:${data.column}`, text: describe(error) })
    } else if (!isSuite) {
      tests.push({ path: names, outcome: 'passed' })
      passed++
    }
    if (!isSuite && ms > limits.slowMs) slow.push({ name, ms })
  }

  const stream = run({
    files: [file],
    concurrency: 1,
    isolation: 'process',
    timeout: limits.testMs,
    signal: abort.signal,
    env,
    ...(limits.names.length > 0 ? { testNamePatterns: limits.names.map((name) => new RegExp(name)) } : {}),
  })
  for await (const event of stream) take(event)
  clearTimeout(idle)
  clearTimeout(overall)

  const silent = failures.length === 0
  if (abort.signal.aborted) failures.push({ name: '(file)', place: file, text: describe(abort.signal.reason) })
  else if (fileError !== undefined && silent) failures.push({ name: '(file)', place: file, text: describe(fileError) })
  else if (silent && passed + skipped.length === 0 && limits.names.length === 0) {
    failures.push({ name: '(file)', place: file, text: 'no test in this file' })
  }
  return { file, ms: Date.now() - started, passed, failures, skipped, slow, tests, output, told }
}

function describe(error: unknown): string {
  // The runner wraps what the test threw.
  const cause = error instanceof Error && error.cause !== undefined ? error.cause : error
  const text =
    cause instanceof Error ? inspect(cause, { depth: 4 }) : typeof cause === 'string' ? cause : inspect(cause)
  const code = error instanceof Error && 'exitCode' in error ? ` (exit code ${String(error.exitCode)})` : ''
  return `${text}${code}`
    .split('\n')
    .filter((line) => !/^\s+at .*\(?node:internal/.test(line))
    .join('\n')
}
