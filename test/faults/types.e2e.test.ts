import { describe, it } from 'node:test'
import { missing } from '../support/servers.ts'
import { carryEveryType } from '../support/type-way.ts'

describe('a value of every type of an older version', () => {
  for (const from of [15, 14] as const)
    it(`arrives as it was, from ${from} to 18`, { skip: missing(`pg${from}`) ?? missing('pg') ?? false }, async () => {
      await carryEveryType(from)
    })
})
