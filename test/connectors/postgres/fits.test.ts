import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fits } from '../../../connectors/postgres/fits.ts'

const categories = new Map<string, string | null>(
  Object.entries({
    json: 'U',
    jsonb: 'U',
    uuid: 'U',
    text: 'S',
    'character varying(5)': 'S',
    date: 'D',
    numeric: 'N',
    integer: 'N',
    money: 'N',
  }),
)
const cases = {
  ok: [
    ['integer', 'integer'],
    ['smallint', 'bigint'],
    ['bigint', 'numeric'],
    ['real', 'double precision'],
    ['integer', 'double precision'],
    ['character varying(5)', 'character varying(6)'],
    ['character varying(5)', 'text'],
    ['uuid', 'text'],
    ['numeric(10,2)', 'numeric'],
    ['numeric(10,2)', 'numeric(12,4)'],
    ['numeric(3,-2)', 'numeric(3,-2)'],
    ['timestamp(3) without time zone', 'timestamp without time zone'],
    ['timestamp(3) without time zone[]', 'timestamp(4) without time zone[]'],
    ['interval(2)', 'interval'],
  ],
  warning: [['json', 'jsonb']],
  blocker: [
    ['bigint', 'integer'],
    ['double precision', 'real'],
    // Rounded without a word.
    ['numeric', 'double precision'],
    ['bigint', 'double precision'],
    ['integer', 'real'],
    ['numeric', 'numeric(10,2)'],
    ['numeric(10,4)', 'numeric(12,2)'],
    ['numeric(6,2)[]', 'numeric(6,1)[]'],
    ['numeric(10,2)', 'numeric(10,4)'],
    ['timestamp without time zone', 'timestamp(3) without time zone'],
    ['timestamp(6) with time zone', 'timestamp(0) with time zone'],
    ['time without time zone', 'time(2) without time zone'],
    ['interval', 'interval(0)'],
    // A part is left out.
    ['timestamp without time zone', 'date'],
    ['timestamp with time zone', 'time without time zone'],
    // Blanks are cut without a word.
    ['character varying(6)', 'character varying(5)'],
    ['text', 'character varying(5)'],
    ['text', 'integer'],
    ['money', 'date'],
  ],
} as const

for (const [level, pairs] of Object.entries(cases))
  test(`a column that is another at the target: ${level}`, () => {
    for (const [source, target] of pairs)
      assert.equal(fits(source, target, categories), level, `${source} into ${target}`)
  })
