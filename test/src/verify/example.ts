import type { Digest } from '../../../src/connector.ts'

/** The worked example of docs/digest.md, taken out of its blocks. */
export type Example = {
  readonly ddl: string
  readonly query: string
  readonly rows: readonly {
    readonly cells: readonly (string | null)[]
    readonly bytes: string
    readonly hash: string
  }[]
  readonly digest: Digest
}

export function exampleOf(page: string): Example {
  const [ddl = '', query = ''] = [...page.matchAll(/```sql\n([^]*?)```/g)].map(([, text]) => text)
  const [text = ''] = [...page.matchAll(/```text\n([^]*?)```/g)].map(([, text]) => text)
  const rows = [...text.matchAll(/^row (.*)\nbytes ([0-9a-f \n]*)\nsha256 ([0-9a-f]{64})$/gm)].map(
    ([, cells = '', bytes = '', hash = '']) => ({
      cells: JSON.parse(cells) as (string | null)[],
      bytes: bytes.replaceAll(/\s/g, ''),
      hash,
    }),
  )
  const [, count = '', first = '', second = ''] = /^rows (\d+)\nfirst (\d+)\nsecond (\d+)$/m.exec(text) ?? []
  return { ddl, query, rows, digest: { rows: Number(count), sums: [BigInt(first), BigInt(second)] } }
}
