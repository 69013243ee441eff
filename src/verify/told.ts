import { asFailure } from '../errors.ts'

/** Why something is not known. A defect of ours too: it is told of what it was met at, and the rest is verified. */
export function told(error: unknown): string {
  const { code, facts, message } = asFailure(error)
  return `${code}: ${facts.observed ?? message}`
}
