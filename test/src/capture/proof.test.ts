import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createProof } from '../../../src/capture/proof.ts'
import { positionOf } from '../apply/rows-for-tests.ts'

type Event =
  | { readonly wish: number; readonly round: number }
  | { readonly landed: number }
  | { readonly take: number | undefined }
/** Each `take` tells the position that may be written there. */
const cases: Readonly<Record<string, readonly Event[]>> = {
  'nothing was wanted': [{ take: undefined }],
  'nothing was ever sent, so everything has landed': [{ wish: 5, round: -1 }, { take: 5 }, { take: undefined }],
  'its round is still open': [{ wish: 5, round: 0 }, { take: undefined }],
  'its round landed': [{ wish: 5, round: 0 }, { landed: 0 }, { take: 5 }],
  'an earlier round landed': [{ wish: 5, round: 1 }, { landed: 0 }, { take: undefined }, { landed: 1 }, { take: 5 }],
  'the newest that landed covers the older ones': [
    { wish: 5, round: 0 },
    { wish: 6, round: 1 },
    { wish: 7, round: 2 },
    { landed: 1 },
    { take: 6 },
    { take: undefined },
    { landed: 2 },
    { take: 7 },
  ],
  'two of one round': [{ wish: 5, round: 0 }, { wish: 6, round: 0 }, { landed: 0 }, { take: 6 }, { take: undefined }],
  'a position that does not rise': [
    { wish: 6, round: 0 },
    { landed: 0 },
    { take: 6 },
    { wish: 6, round: 0 },
    { wish: 5, round: 0 },
    { take: undefined },
  ],
}

for (const [name, events] of Object.entries(cases)) {
  test(name, () => {
    const proof = createProof()
    for (const event of events) {
      if ('wish' in event) proof.wish({ position: positionOf(event.wish), committedAt: 0 }, event.round)
      else if ('landed' in event) proof.landed(event.landed)
      else {
        const expected = event.take === undefined ? undefined : positionOf(event.take)
        assert.equal(proof.due, expected !== undefined)
        assert.equal(proof.take()?.position, expected)
      }
    }
  })
}
