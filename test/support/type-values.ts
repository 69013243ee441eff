/** A value of each type, as its input function reads it: chosen to break what parses, prints, rounds, pads, trims or escapes. */
const words = [
  '', ' ', ' both ', 'NULL', 'null', '\\N', '\\.', '\\', '\\\\', '\\x41', 'tab\tnew\nline\rback\bfeed\f\v', "'", '"', '{a,b}', '(a,b)', ',', '$1 %s',
  'é', 'e\u0301', 'täxt 𝄞 👨‍👩‍👧', '\ufeffbom', '\u0001\u007f\u0085\u2028', '\uffff\u{10ffff}', 'ß ẞ ﬁ',
] // prettier-ignore
/** Beyond what fits into a page; one text and one bytea are of 1 MiB. */
const large = 1 << 16
const largest = 1 << 20
const digits = (count: number): string => '7'.repeat(count)
const catalogNames = (...names: string[]): readonly string[] => ['-', '0', ...names, '4294967295']

/** By the type's name in pg_catalog. */
export const valuesOf: Readonly<Record<string, readonly string[]>> = {
  bool: ['t', 'f'],
  int2: ['-32768', '-1', '0', '32767'],
  int4: ['-2147483648', '-1', '0', '2147483647'],
  int8: ['-9223372036854775808', '-9007199254740993', '-1', '0', '9007199254740993', '9223372036854775807'],
  numeric: [
    'NaN', 'Infinity', '-Infinity', '0', '-0', '0.00', '1.10', '-1.1000', '1e-30', '1e30', '0.1', '-99999999999999999999.99999999999999999999',
    `-${digits(131072)}.${digits(16383)}`, `0.${digits(16383)}`, `0.${'0'.repeat(16382)}1`, `1.${'0'.repeat(16383)}`, '10000', '0.0001', '100000000.00000000',
  ],
  float4: ['NaN', 'Infinity', '-Infinity', '-0', '0', '1e-45', '-1e-45', '1.1754944e-38', '3.4028235e38', '0.1', '16777217', '33554430', '9.8765436e8', '1e15'],
  float8: [
    'NaN', 'Infinity', '-Infinity', '-0', '0', '5e-324', '-5e-324', '2.2250738585072014e-308', '2.225073858507201e-308', '1.7976931348623157e308', '0.1', '9007199254740993', '1e22', '1e23', '123456789012345680', '0.000001', '1e-7',
  ],
  money: ['-92233720368547758.08', '92233720368547758.07', '-0.01', '0', '1234.5'],
  text: [...words, 'x'.repeat(large), '𝄞'.repeat(largest / 4)],
  varchar: [...words, 'x'.repeat(large)],
  bpchar: [...words, 'trailing   '],
  char: ['', ' ', 'a', '\\', "'", ',', '\x01'],
  name: [...words, 'n'.repeat(63), '𝄞'.repeat(15)],
  bytea: ['\\x', '\\x00', '\\x00ff00', '\\x5c784e', `\\x${'00'.repeat(large)}`, `\\x${'00ff'.repeat(largest / 2)}`],
  date: ['infinity', '-infinity', '4713-01-01 BC', '0001-12-31 BC', '0001-01-01', '1582-10-10', '1999-12-31', '5874897-12-31'],
  time: ['00:00:00', '23:59:59.999999', '24:00:00', '00:00:00.000001'],
  timetz: ['00:00:00+15:59:59', '24:00:00-15:59:59', '12:00:00+00', '23:59:59.999999-00:00:01', '01:02:03.4+05:45'],
  timestamp: ['infinity', '-infinity', '4713-01-01 00:00:00 BC', '0001-12-31 23:59:59.999999 BC', '294276-12-31 23:59:59.999999', '2024-02-29 12:00:00.000001', '1999-12-31 23:59:59.9'],
  timestamptz: ['infinity', '-infinity', '4713-11-24 00:00:00+00 BC', '0044-03-15 12:00:00.123+15:59:59 BC', '294276-12-31 23:59:59.999999+00', '2024-03-31 02:30:00 Europe/Berlin', '1900-01-01 00:00:00 Europe/Amsterdam'],
  interval: [
    '0', '-1 year 2 mons -3 days 04:05:06.000007', '1 mon -1 day', '-1 day +00:00:00.000001', '178956970 years 7 mons', '-178956970 years -8 mons', '2147483647 days', '-2147483648 days',
    '-00:00:00.5', '1.5 years', '@ 1 year ago',
  ],
  json: ['{"a":1, "a": 2.10,\n\t"b" :[ ]}', ' null ', '"\\u0000\\ud834\\udd1e"', `{"n": ${digits(400)}e999}`, '""', '[1e400, -0, 1.10, 1E+2]', '"\\/"', `"${'x'.repeat(large)}"`],
  jsonb: ['{"a":1, "a": 2.10}', 'null', '"\\ud834\\udd1e\\\\"', `[1e400, -0, 1.10, 1e-400, ${digits(5000)}.${digits(5000)}]`, '{"": {"b": [[], {}]}, "\\"": 1, "zz": null}', '""', `"${'x'.repeat(large)}"`, '9007199254740993'],
  jsonpath: ['$', 'strict $.a[*] ? (@.b > 1.50 && @.c like_regex "^\\\\d+$" flag "i")', '$."x y"."\\"".**{2 to last}', '$.a.datetime("HH24:MI")', '-$[0].keyvalue()', '$var + 1e10'],
  xml: ['', 'text &amp; &lt; ü 𝄞', '<a b="c\'d">\n <![CDATA[<&>]]><!-- c --><?pi x?></a>', '<a/><b/>', '<?xml version="1.0" standalone="yes"?><a/>', '<!DOCTYPE a><a/>', '<ü:x xmlns:ü="urn:ü"/>'],
  uuid: ['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'],
  inet: ['0.0.0.0/0', '255.255.255.255', '10.1.2.3/8', '::', '::1/64', '::ffff:1.2.3.4', '2001:db8::/32', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/0', 'fe80::1'],
  cidr: ['0.0.0.0/0', '255.255.255.255/32', '10.0.0.0/8', '::/0', '::1/128', '2001:db8::/32'],
  macaddr: ['00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff', '08-00-2b-01-02-03'],
  macaddr8: ['00:00:00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff:ff:ff', '08:00:2b:01:02:03'],
  bit: ['', '0', '1', '10101', '0'.repeat(1000)],
  varbit: ['', '0', '1', '10101', '01'.repeat(10_000)],
  point: ['(0,-0)', '(NaN,Infinity)', '(1e-300,-5e-324)', '(0.1,1e300)'],
  line: ['{1,-1,0.1}', '{-0,1,NaN}', '{1e-300,1e300,-Infinity}'],
  lseg: ['[(0,-0),(0.1,1e300)]', '[(NaN,Infinity),(-Infinity,0)]'],
  box: ['(1,1),(-0,0.1)', '(0,0),(0,0)', '(Infinity,1e300),(-Infinity,-5e-324)'],
  path: ['[(0,0)]', '((0,-0),(0.1,1),(1,0))', '[(NaN,1),(2,3)]'],
  polygon: ['((0,0))', '((0,-0),(0.1,1),(1,0))', '((NaN,1),(2,3))'],
  circle: ['<(0,-0),0>', '<(0.1,1e300),5e-324>', '<(1,2),Infinity>'],
  tsvector: ['', 'a', "a:1A fat:2B,4C 'it''s':3 '\\\\':16383 'x y':5,6D", "'ü 𝄞':1", "' ':1 '':2".slice(0, 5), `big:${Array.from({ length: 200 }, (_, i) => i + 1).join()}`],
  tsquery: ['', 'a', "fat & (rat | !cat:*A) <-> 'x y'", "!(a <2> (b & !c)) | 'it''s':AB*", "a <-> (b <-> c)", "(a | b) & !!c", "'\\\\' & 'ü'"],
  oid: ['0', '2147483648', '4294967295'],
  xid: ['0', '3', '2147483648', '4294967295'],
  xid8: ['0', '3', '9223372036854775808', '18446744073709551615'],
  cid: ['0', '4294967295'],
  tid: ['(0,0)', '(0,1)', '(4294967295,65535)'],
  pg_lsn: ['0/0', 'FFFFFFFF/FFFFFFFF', '16/B374D848'],
  pg_snapshot: ['1:1:', '10:20:10,14,15', '1:9223372036854775807:5'],
  txid_snapshot: ['1:1:', '10:20:10,14,15'],
  refcursor: ['', 'a cursor', '<unnamed portal 1>'],
  int2vector: ['', '0', '-32768 1 32767'],
  oidvector: ['', '0', '4294967295 1'],
  aclitem: ['=r/postgres', 'postgres=arwdDxt/postgres', 'postgres=r*w/postgres', '=/postgres'],
  regclass: catalogNames('pg_catalog.pg_class', 'public.thing', 'public."Odd ""Table"".x"', '"Ödd Schema"."a.b"', '12345'),
  regtype: catalogNames('integer', 'public.mood', 'public.mood[]', 'character varying', '"char"', 'public."Odd ""Table"".x"', 'timestamp with time zone', '1'.repeat(9)),
  regproc: catalogNames('now', 'pg_catalog.pg_sleep', 'public.twice_of', '12'),
  regprocedure: catalogNames('upper(text)', 'public.twice_of(integer)', 'sum(double precision)', '12'),
  regoper: ['0', 'pg_catalog.||/', 'public.@#@', '4294967295'],
  regoperator: ['0', '+(integer,integer)', 'public.@#@(integer,integer)', '-(NONE,integer)', '4294967295'],
  regconfig: ['-', '0', 'english', 'public."My Config"', '4294967295'],
  regdictionary: ['-', '0', 'simple', '4294967295'],
  regnamespace: ['-', '0', 'public', '"Ödd Schema"', '4294967295'],
  regrole: ['-', '0', 'postgres', 'pg_monitor', '4294967295'],
  regcollation: ['-', '0', '"C"', '"default"', '4294967295'],
  int4range: ['empty', '(,)', '[-2147483648,2147483647)', '[1,1]', '[5,)'],
  int8range: ['empty', '(,)', '[-9223372036854775808,9223372036854775807)', '(,0]'],
  numrange: ['empty', '(,)', '(1.10,1.1000]', '[-Infinity,NaN]', '[-Infinity,Infinity)', `[0,${digits(1000)}.5)`],
  daterange: ['empty', '(,)', '[-infinity,infinity]', '[4713-01-01 BC,5874897-12-31)', '[2024-02-28,2024-02-29]'],
  tsrange: ['empty', '(,)', '["0001-01-01 00:00:00 BC",infinity]', '(-infinity,"2024-02-29 12:00:00.000001")'],
  tstzrange: ['empty', '(,)', '["0001-01-01 00:00:00+00 BC",infinity]', '(-infinity,"2024-02-29 12:00:00.000001+05:45")'],
  int4multirange: ['{}', '{(,)}', '{[1,3),[5,)}'],
  int8multirange: ['{}', '{(,)}', '{(,-9223372036854775808),[5,9223372036854775807)}'],
  nummultirange: ['{}', '{(,)}', '{(1.10,1.1000],[-Infinity,0.00)}'],
  datemultirange: ['{}', '{(,)}', '{[-infinity,0001-01-01 BC),[2024-02-28,2024-02-29]}'],
  tsmultirange: ['{}', '{(,)}', '{["0001-01-01 00:00:00 BC","2000-01-01 00:00:00"),[infinity,]}'],
  tstzmultirange: ['{}', '{(,)}', '{["0001-01-01 00:00:00+00 BC","2000-01-01 00:00:00+05:45")}'],
} // prettier-ignore

/** Values that only a server of this version and later reads. */
export const valuesSince: Readonly<Record<number, Readonly<Record<string, readonly string[]>>>> = {
  150000: {
    interval: ['2562047788:00:54.775807', '-2562047788:00:54.775807', '178956970 years 7 mons -2147483648 days 2562047788:00:54.775807'],
  },
  160000: { char: ['\\200', '\\377'] },
  170000: { interval: ['infinity', '-infinity'], jsonpath: ['$.a.decimal(5, 2).string()'] },
} // prettier-ignore

/** Of no type a value can be written: their input functions refuse any. A column of one is refused by the preflight. */
export const unwritable: readonly string[] = [
  'pg_node_tree',
  'pg_ndistinct',
  'pg_dependencies',
  'pg_mcv_list',
  'pg_brin_bloom_summary',
  'pg_brin_minmax_multi_summary',
  'gtsvector',
]

/** What the values above name, and types made of others; the same at both ends. */
export const objects = `
create schema "Ödd Schema";
create table public.thing (id int primary key);
create table public."Odd ""Table"".x" (id int primary key);
create table "Ödd Schema"."a.b" (id int primary key);
create type public.mood as enum ('sad', 'it''s ok', 'so, "happy"', '', '\\');
create function public.twice_of(int) returns int language sql immutable as 'select $1 * 2';
create operator public.@#@ (function = int4pl, leftarg = int, rightarg = int);
create text search configuration public."My Config" (copy = pg_catalog.simple);
`

/** Types of users: made by `userTypes`, at both ends. */
export const userTypes = `
create domain public.positive as int check (value > 0);
create domain public.tiny as public.positive default 7 check (value < 100);
create domain public.short as varchar(5);
create domain public.padded as char(6) default '';
create domain public.tags as text[] check (cardinality(value) < 50);
create domain public.exact as numeric(8, 3);
create type public.pair as (a int, b char(3), c public.mood[]);
create type public.nested as (p public.pair, "p s" public.pair[], d public.short, r int4range, j jsonb);
create type public.lost as (a int, gone text, b text, also_gone int);
alter type public.lost drop attribute gone, drop attribute also_gone;
create type public.none as ();
create domain public.good_pair as public.pair check ((value).a > 0);
create domain public.moody as public.mood check (value <> 'sad');
create type public.floatrange as range (subtype = float8, subtype_diff = float8mi);
create type public.moodrange as range (subtype = public.mood, multirange_type_name = public.moods);
create type public.wordrange as range (subtype = text, collation = "C", subtype_opclass = text_pattern_ops, multirange_type_name = "Ödd Schema".wordmultirange);
create type public.pairrange as range (subtype = public.pair);
create type public.raw;
create function public.raw_in(cstring) returns public.raw language internal immutable strict as 'textin';
create function public.raw_out(public.raw) returns cstring language internal immutable strict as 'textout';
create type public.raw (input = public.raw_in, output = public.raw_out, like = text);
create type public.three;
create function public.three_in(cstring, oid, int4) returns public.three language internal immutable strict as 'varcharin';
create function public.three_out(public.three) returns cstring language internal immutable strict as 'varcharout';
create function public.three_recv(internal, oid, int4) returns public.three language internal immutable strict as 'varcharrecv';
create function public.three_send(public.three) returns bytea language internal immutable strict as 'varcharsend';
create type public.three (input = public.three_in, output = public.three_out, receive = public.three_recv, send = public.three_send, like = varchar, category = 'S');
`

/** Casts that change what they are given: a value must pass through none of them. */
export const hostileCasts = `
create function public.shout(public.raw) returns text language sql immutable as $$ select upper(pg_catalog.textin(public.raw_out($1))) $$;
create function public.mute(text) returns public.raw language sql immutable as $$ select public.raw_in('mute') $$;
create cast (public.raw as text) with function public.shout(public.raw);
create cast (text as public.raw) with function public.mute(text) as assignment;
create function public.lift(public.mood) returns text language sql immutable as $$ select 'happy'::text $$;
create function public.sink(text) returns public.mood language sql immutable as $$ select 'sad'::public.mood $$;
create cast (public.mood as text) with function public.lift(public.mood) as implicit;
create cast (text as public.mood) with function public.sink(text) as implicit;
create function public.no_pair(text) returns public.pair language sql immutable as $$ select row(0, '', null)::public.pair $$;
create cast (text as public.pair) with function public.no_pair(text) as assignment;
create function public.no_range(text) returns public.floatrange language sql immutable as $$ select 'empty'::public.floatrange $$;
create cast (text as public.floatrange) with function public.no_range(text) as assignment;
`

export const userValues: Readonly<Record<string, readonly string[]>> = {
  mood: ['sad', "it's ok", 'so, "happy"', '', '\\'],
  positive: ['1', '2147483647'],
  tiny: ['1', '99'],
  short: words.filter((word) => Array.from(word).length <= 5),
  padded: ['', 'ab', '  ab  ', 'täxt 𝄞'],
  tags: ['{}', '{NULL,"NULL","",a b}', '[0:1]={"\\\\","\\""}', '{{a,b},{c,NULL}}'],
  exact: ['0', '-99999.999', '1.1', 'NaN'],
  pair: ['(,,)', '(1,a,{})', '(-1,"a b","{sad,""it\'s ok"",NULL,""so, \\\\""happy\\\\"""",""""}")', '(0,"\'\\\\""",)'],
  nested: ['(,,,,)', `("(1,a,{})","{""(1,a,{sad})"",NULL}",äöü,"[1,3)","{""a"": [1.10]}")`],
  lost: ['(1,b)', '(,)', '(2,"")'],
  none: ['()'],
  good_pair: ['(1,a,{})'],
  moody: ["it's ok", ''],
  floatrange: ['empty', '(,)', '[-0,0.1]', '[-Infinity,NaN)'],
  moodrange: ['empty', '[sad,"so, \\"happy\\""]', '(,"")'],
  wordrange: ['empty', '[B,a)', '["",")"]', '[" a","b\\\\,\\"")', '(,ü]'],
  pairrange: ['empty', '["(1,a,{})","(2,b,)")'],
  floatmultirange: ['{}', '{[-0,0.1],(5,)}'],
  moods: ['{}', '{[sad,sad],["so, \\"happy\\"",)}'],
  wordmultirange: ['{}', '{["",a),["b,\\"",)}'],
  pairmultirange: ['{}', '{["(1,a,{})","(2,b,)")}'],
  thing: ['(1)', '()'],
  'Odd "Table".x': ['(-1)'],
  'a.b': ['()'],
  raw: words,
  three: words,
} // prettier-ignore

/** Of extensions, where the server has them. */
export const extensionValues: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>> = {
  citext: { citext: words },
  hstore: {
    hstore: ['', 'a=>b, c=>NULL', '"a b"=>"c\\"\\\\", ""=>"", "NULL"=>"NULL"', '"ü"=>"𝄞\n"'],
    ghstore: [],
  },
  ltree: {
    ltree: ['', 'a', 'Top.a_1.b'],
    lquery: ['*', '*.a{1,2}.!b|c*@%'],
    ltxtquery: ['a & b*@ | !c'],
    ltree_gist: [],
  },
  cube: { cube: ['(0)', '(1,2,-0),(0.1,1e300,NaN)', '(1e-300)'] },
  seg: { seg: ['1', '1.10', '~1.5 .. >2.0', '1 .. ', '-1e-30 .. 1e30'] },
  isn: {
    ean13: ['978-0-11-000533-1'],
    isbn: ['0-11-000533-3'],
    isbn13: ['978-0-11-000533-1'],
    ismn: ['M-060-11561-5'],
    ismn13: ['979-0-060-11561-5'],
    issn: ['1436-4522'],
    issn13: ['977-1436-452-00-8'],
    upc: ['220356483481'],
  },
  intarray: { query_int: ['1&(2|!3)'], intbig_gkey: [] },
  lo: { lo: ['0', '4294967295'] },
  pg_trgm: { gtrgm: [] },
  btree_gist: {
    gbtreekey2: [], gbtreekey4: [], gbtreekey8: [], gbtreekey16: [], gbtreekey32: [], gbtreekey_var: [],
  },
} // prettier-ignore

/** Columns with a modifier: what fits is neither cut, padded nor rounded again. */
export const declared: Readonly<Record<string, readonly string[]>> = {
  'numeric(6,2)': ['0', '-9999.99', '1.1', 'NaN'],
  'numeric(1000,1000)': ['0', `0.${digits(1000)}`],
  'varchar(4)': ['', 'a', '𝄞𝄞𝄞𝄞', 'a   '],
  'char(4)': ['', 'a', '𝄞', '  a'],
  'bit(4)': ['0000', '1010'],
  'varbit(4)': ['', '101'],
  'timestamp(0)': ['2024-02-29 12:00:00', 'infinity'],
  'timestamptz(3)': ['2024-02-29 12:00:00.123+00', '-infinity'],
  'time(2)': ['24:00:00', '12:00:00.12'],
  'timetz(1)': ['12:00:00.1+15:59:59'],
  'interval year to month': ['1 year 2 mons', '-1 mon'],
  'interval second(2)': ['-00:00:01.5', '100:00:00.25'],
  'interval day': ['-5 days'],
  'float(3)': ['0.1', '-0'],
} // prettier-ignore
