import { Failure } from '../../src/errors.ts'
import { mapError, sqlState } from './errors.ts'

/** One answer of a source, or the end of the wait: rejects with the signal's reason, or a Failure that names `object`. */
export async function ask<T>(asked: Promise<T>, signal: AbortSignal, object?: string): Promise<T> {
  try {
    return await orAborted(asked, signal)
  } catch (error) {
    if (signal.aborted) throw signal.reason
    throw sourceFailure(error, object)
  }
}

/** A server that has become a standby, or is still one, has no changes to give: the address may lead to the primary soon. */
function sourceFailure(error: unknown, object: string | undefined): Error {
  if (sqlState(error) !== '55000' || !(error instanceof Error) || !/recovery/.test(error.message)) {
    return mapError(error, object)
  }
  const next = 'Use the address of the primary, or promote this server'
  return new Failure('SERVER_UNREACHABLE', { object: 'source', observed: error.message, next, cause: error })
}

async function orAborted<T>(asked: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted()
  const { promise, reject } = Promise.withResolvers<never>()
  const abort = (): void => reject(signal.reason)
  signal.addEventListener('abort', abort, { once: true })
  try {
    return await Promise.race([asked, promise])
  } finally {
    signal.removeEventListener('abort', abort)
    asked.catch(() => {}) // its outcome has no reader after an abort
  }
}
