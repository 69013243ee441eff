/** Structured, leveled text for operators and their log collectors; never carries a row's values. The process's own is made in `main.ts`. */
export interface Logger {
  debug(facts: object, text: string): void
  info(facts: object, text: string): void
  warn(facts: object, text: string): void
  error(facts: object, text: string): void
}
export const silent: Logger = { debug() {}, info() {}, warn() {}, error() {} }
