import { asFailure } from '../errors.ts'

/** Why something is not known; a defect of ours is thrown on. */
export function told(error: unknown): string {
  const { code, facts, message } = asFailure(error)
  if (code === 'BUG') throw error
  return `${code}: ${facts.observed ?? message}`
}
