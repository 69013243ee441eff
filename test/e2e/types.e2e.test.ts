import { describe, it } from 'node:test'
import { needs } from '../support/servers.ts'
import { carryEveryType } from '../support/type-way.ts'

describe('a value of every type', needs('pg'), () => {
  it('arrives as it was, copied and streamed, by key and by the whole old row', async () => await carryEveryType(18))
})
