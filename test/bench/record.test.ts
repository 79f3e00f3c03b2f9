// SPDX-License-Identifier: MIT
// Records: written, read, judged; everything that is not one is refused with a reason.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { H200_COSTS } from '../../harness/bench/bed.ts';
import { documentCsv, documentMarkdown } from '../../harness/bench/export.ts';
import { gainFacts, gainTargets, predictedGainMs, readCosts } from '../../harness/bench/prediction.ts';
import { conclude, formatDocument, parseDocument, readDocument, writeWhole } from '../../harness/bench/record.ts';
import { CudapoolError } from '../../harness/errors.ts';
import { tempDir } from '../support/index.ts';
import { host, observations, record, STOCK_MS } from './fixture.ts';

const refused = (work: () => unknown): CudapoolError => {
  try {
    work();
  } catch (thrown) {
    if (thrown instanceof CudapoolError) return thrown;
    throw thrown;
  }
  throw new Error('it was not refused');
};

t.test('a document comes back as it was written', async (t) => {
  const file = join(tempDir(t), 'record.json');
  await writeWhole(file, formatDocument(host, [record()]));
  const read = await readDocument(file);
  t.same(read.records, [record()]);
  t.same(read.host, host);
  t.same(
    read.records[0]?.runs.slice(0, 6).map(({ variant }) => variant),
    ['stock', 'pool', 'pool', 'stock', 'stock', 'pool'],
    'in the order they ran',
  );
  t.same(readdirSync(join(file, '..')), ['record.json'], 'no draft is left');
});

t.test('a file that cannot be written says which', async (t) => {
  await t.rejects(writeWhole('/nonexistent/record.json', '{}'), { code: 'ERR_CUDAPOOL_WRITE', message: /nonexistent/ });
});

t.test('targets are judged', async (t) => {
  const [ratio, atMost, fact] = record().verdicts;
  t.match(ratio, { met: true });
  t.ok(ratio?.value !== null && Math.abs((ratio?.value ?? 0) - 500 / 995) < 1e-12);
  t.match(atMost, { met: false, value: 500 });
  t.match(fact, { met: true, value: 0 });
  t.match(conclude({ ...observations(), facts: {} }).verdicts[2], { met: false, value: null }, 'no figure is not met');
});

t.test('a target with two bounds, and one that a few runs say nothing of', async (t) => {
  const verdicts = (gain: number, runs = 7) => {
    const target = { kind: 'fact', what: 'gain', fact: 'gain', min: 0.8, max: 1.25, runs } as const;
    return conclude({ ...observations(), targets: [target], facts: { gain } }).verdicts;
  };
  for (const [gain, met] of [
    [0.79, false],
    [0.8, true],
    [1.25, true],
    [1.26, false],
  ] as const) {
    t.same(verdicts(gain), [{ what: 'gain', min: 0.8, max: 1.25, value: gain, met }], `${gain}`);
  }
  t.same(verdicts(1, 8), [], 'seven right runs of each are not eight');
  const [first, ...rest] = observations().runs;
  const failed = { ...observations(), runs: [{ ...first, error: 'it failed' } as typeof first & object, ...rest] };
  const target = { kind: 'fact', what: 'gain', fact: 'gain', max: 1, runs: 7 } as const;
  t.same(conclude({ ...failed, targets: [target] }).verdicts, [], 'nor are six right ones and a failed one seven');
  const text = documentMarkdown({
    schema: 'cudapool.bench',
    version: 1,
    host,
    records: [conclude({ ...observations(), targets: [{ ...target, min: 0.8 }], facts: { gain: 0.5 } })],
  });
  t.match(text, /- \*\*missed\*\*: gain: 0\.50+, target 0\.80+ to 1\.0/);
});

t.test('what the costs predict is a target where costs are in use', async (t) => {
  t.same(gainTargets({ costs: undefined }), []);
  const costs = H200_COSTS;
  const predicted = predictedGainMs(readCosts(costs));
  const judged = (gain: number) => {
    const seen = observations(
      undefined,
      STOCK_MS.map((ms) => ms - gain),
    );
    const facts = gainFacts({ costs }, seen, 'restore_ms');
    return conclude({ ...seen, facts, targets: gainTargets({ costs }) }).verdicts.map(({ met }) => met);
  };
  t.same(judged(predicted), [true]);
  t.same(judged(0.75 * predicted), [false]);
  t.same(judged(1.3 * predicted), [false]);
});

t.test('failed runs and warm-ups do not count', async (t) => {
  const seen = observations();
  const first = { ...seen.runs[0], values: { restore_ms: 1e6 } } as (typeof seen.runs)[number];
  const more = [
    { ...first, warmup: true },
    { ...first, error: 'it failed' },
  ];
  t.same(conclude({ ...seen, runs: [...more, ...seen.runs] }).results, record().results);
});

t.test('what is not a record is refused', async (t) => {
  const whole = JSON.parse(formatDocument(host, [record()])) as Record<string, unknown>;
  const changed = (change: (document: Record<string, never>) => void): string => {
    const copy = structuredClone(whole);
    change(copy as Record<string, never>);
    return JSON.stringify(copy);
  };
  const cases: [name: string, text: string, message: RegExp][] = [
    ['no JSON', '{', /not JSON/],
    ['null', 'null', /not a benchmark record/],
    ['another schema', changed((d) => Object.assign(d, { schema: 'x' })), /not a benchmark record/],
    ['another version', changed((d) => Object.assign(d, { version: 99 })), /version 99/],
    ['a field too many', changed((d) => Object.assign(d, { extra: 1 })), /extra/],
    ['a field missing', changed((d) => Reflect.deleteProperty(d, 'host')), /host/],
    [
      'a result that does not follow from the runs',
      JSON.stringify(whole).replace('"median":500', '"median":400'),
      /do not follow/,
    ],
    [
      'a value that is no number',
      JSON.stringify(whole).replace('"restore_ms":980', '"restore_ms":"980"'),
      /restore_ms/,
    ],
  ];
  for (const [name, text, message] of cases) {
    const error = refused(() => parseDocument(text, 'FILE'));
    t.match(error, { code: 'ERR_CUDAPOOL_RECORD', message, exit: 2 }, name);
    t.match(error.message, /^FILE: /);
    t.ok(error.hint, `${name}: names a fix`);
  }
});

t.test('our own mistakes are not written', async (t) => {
  const bad = conclude({ ...observations(), suite: 'Not A Name' });
  t.match(
    refused(() => formatDocument(host, [bad])),
    { code: 'ERR_CUDAPOOL_RECORD', message: /malformed/ },
  );
});

t.test('markdown shows medians, intervals, ratios, missed targets and failures', async (t) => {
  const seen = observations();
  const failed = { ...(seen.runs[0] as (typeof seen.runs)[number]), error: 'no | answer\nat all' };
  const text = documentMarkdown({
    schema: 'cudapool.bench',
    version: 1,
    host,
    records: [conclude({ ...seen, runs: [...seen.runs, failed] })],
  });
  t.match(text, /NVIDIA H200; driver 580\.159\.04, CUDA 13\.0/);
  t.match(text, /\| With context pool: restore +\| +500\.0 ms \| 490\.0 to 515\.0 \|/);
  t.match(text, /0\.50 \(0\.\d\d to 0\.\d\d\) \|/);
  t.match(text, /- met: restore, of stock: 0\.503 /);
  t.match(text, /- \*\*missed\*\*: restore: 500\.0 \(490\.0 to 515\.0\), target at most 100\.0/);
  t.match(text, /\*\*1 failed run\*\*:\n- run 1 \(stock\): no \\\| answer at all/);
  t.notMatch(text, /[Ss]imulated/);
  const simulated = { ...host, simulated: true, softcuda_costs: 'a'.repeat(64) };
  t.match(
    documentMarkdown({ schema: 'cudapool.bench', version: 1, host: simulated, records: [record()] }),
    /## Simulated: .*aaaaaaaaaaaa/,
  );
});

t.test('CSV has every run', async (t) => {
  const lines = documentCsv({ schema: 'cudapool.bench', version: 1, host, records: [record()] })
    .trimEnd()
    .split('\n');
  t.equal(lines.length, 15);
  t.equal(lines[0], 'suite,case,order,variant,warmup,verified,restore_ms,error,simulated');
  t.equal(lines[1], 'criu,0mib,1,stock,false,true,980,,false');
});

t.test('processes that took turns: it holds, it does not, it cannot be told', async (t) => {
  const judged = (
    { with: ours, noise = 0, rounds = 12 }: { with: number; noise?: number; rounds?: number },
    by: 'ratio' | 'difference',
    max: number,
  ) => {
    const runs = Array.from({ length: rounds }, (_, round) => [
      { variant: 'without', ms: 100 },
      { variant: 'with', ms: ours },
      { variant: 'again', ms: 100 + noise * (round % 3) },
    ]).flat();
    const names = ['without', 'with', 'again'];
    return conclude({
      ...observations(),
      variants: names.map((name) => ({ name, label: name })),
      metrics: [{ name: 'ms', unit: 'ms', label: 'ms' }],
      targets: [
        { kind: 'paired', what: 'x', metric: 'ms', variant: 'with', baseline: 'without', control: 'again', by, max },
      ],
      runs: runs.map(({ variant, ms }, i) => ({
        order: i + 1,
        variant,
        warmup: false,
        values: { ms },
        verified: true,
      })),
    }).verdicts[0];
  };
  t.match(judged({ with: 100.5 }, 'ratio', 1.01), {
    answer: 'holds',
    met: true,
    value: 1.005,
    control: { value: 1, low: 1, high: 1 },
  });
  t.match(judged({ with: 102 }, 'ratio', 1.01), { answer: 'does not hold', met: false });
  t.match(judged({ with: 108 }, 'difference', 10), { answer: 'holds', value: 8 });
  t.match(judged({ with: 111 }, 'difference', 10), { answer: 'does not hold', value: 11 });
  t.match(
    judged({ with: 100, noise: 5 }, 'ratio', 1.01),
    { answer: 'cannot tell', met: false },
    'the control differs, too',
  );
  t.match(judged({ with: 100, rounds: 5 }, 'ratio', 1.01), { answer: 'cannot tell', value: null }, 'too few rounds');
});
