// SPDX-License-Identifier: MIT
// `cudapool bench` on the software driver, end to end: real CRIU, real podman, a pool, and the figures that the costs predict.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { H200_COSTS } from '../../harness/bench/bed.ts';
import { predictedGainMs, readCosts } from '../../harness/bench/prediction.ts';
import { readDocument } from '../../harness/bench/record.ts';
import { allSuites } from '../../harness/bench/suites/index.ts';
import { built, builtCriu, cudapool, isRoot, skipUnless, tempDir } from '../support/index.ts';

t.test('what the recorded costs predict', async (t) => {
  // (97 + 98) twice, 9 + 7, and a cold restore, against a warm one: from facts-h200.md by hand
  t.equal(predictedGainMs(readCosts(H200_COSTS)), 2 * (97 + 98) + (9 + 7) + 280 - 185);
  t.throws(() => predictedGainMs(new Map()), RangeError, 'nothing is made up');
});

t.test('restores without and with the pool', async (t) => {
  const ready =
    isRoot &&
    builtCriu('4.2.1').ready &&
    existsSync(built.cudapoold) &&
    existsSync(join(built.softcudaLib, 'libcuda.so.1'));
  if (!skipUnless(t, ready, 'needs root, and everything built')) return;
  const dir = tempDir(t);
  const scratch = mkdtempSync('/tmp/b'); // podman wants short names
  t.teardown(() => rmSync(scratch, { recursive: true, force: true }));
  const file = join(dir, 'record.json');
  const out = join(dir, 'out');
  const csv = join(dir, 'runs.csv');
  const markdown = join(dir, 'results.md');
  const args = ['bench', 'criu', 'restore', '--driver', 'softcuda', '--runs', '2', '--warmup', '0', '--memory', '2'];
  const files = ['--json', file, '--out', out, '--export-csv', csv, '--export-markdown', markdown];
  const ran = await cudapool([...args, ...files], {
    timeoutMs: 110_000,
    env: { CUDAPOOL_SCRATCH: scratch, TMPDIR: scratch },
  });
  t.equal(ran.exitCode, 0, ran.stderr);

  t.equal(ran.stdout.match(/│ Without context pool {2}│/g)?.length, 2, "the guide's table, for each");
  t.match(ran.stdout, /^Improvement: \d\.\d{3}s faster \(\d+% improvement\)$/m);
  t.match(ran.stdout, /^simulated: /m);
  t.match(ran.stderr, /^restore \(2mib\) 1\/4 Without context pool: [\d.]+ ms; about \d+ s left$/m);
  t.same(readdirSync(scratch), [], 'nothing is left behind');

  const { host, records } = await readDocument(file);
  t.match(host, { simulated: true, criu: '4.2.1', softcuda_costs: /^[0-9a-f]{64}$/ });
  t.same(readdirSync(out).sort(), ['criu-2mib.json', 'restore-2mib.json']);
  t.equal(records.length, 2);
  for (const record of records) {
    const { suite, runs, facts } = record;
    const order = suite === 'criu' ? 'stock pool pool_zeros pool_zeros pool stock' : 'stock pool pool stock';
    t.equal(runs.map(({ variant }) => variant).join(' '), order, `${suite}: ABBA`);
    t.ok(
      runs.every(({ verified, error }) => verified && error === undefined),
      `${suite}: every answer was right`,
    );
    t.equal(facts.executed_with_pool, 0, `${suite}: nothing is executed with the pool`);
    t.ok(
      Number(facts.executed_with_stock) >= 3,
      `${suite}: upstream's plugin executes cuda-checkpoint for each action`,
    );
    const [predicted, measured] = [Number(facts.predicted_gain_ms), Number(facts.measured_gain_ms)];
    t.equal(facts.measured_of_predicted_gain, measured / predicted);
    t.match(record.targets.at(-1), { fact: 'measured_of_predicted_gain', min: 0.8, max: 1.25, runs: 7 });
    t.notOk(
      record.verdicts.some(({ min }) => min !== undefined),
      `${suite}: two runs are not judged by it`,
    );
    // A machine that has other things to do only adds to a run.
    const fastest = (variant: string): number =>
      Math.min(...runs.filter((run) => run.variant === variant).map(({ values }) => Number(values.restore_ms)));
    const gained = fastest('stock') - fastest('pool');
    t.ok(
      gained > 0.5 * predicted && gained < 2 * predicted,
      `${suite}: gained ${gained.toFixed(0)} ms, predicted ${predicted} ms`,
    );
  }
  t.equal(readFileSync(csv, 'utf8').trimEnd().split('\n').length, 1 + 6 + 4);
  t.match(readFileSync(markdown, 'utf8'), /## Simulated: software driver with measured costs/);
});

t.test('leaks: the GPU memory that the software driver counts is in the record, and judged', async (t) => {
  if (!skipUnless(t, isRoot && builtCriu('4.2.1').ready, 'needs root, and everything built')) return;
  const file = join(tempDir(t), 'leaks.json');
  const args = ['bench', 'leaks', '--driver', 'softcuda', '--costs', 'none', '--runs', '5', '--warmup', '0'];
  const ran = await cudapool([...args, '--memory', '4', '--json', file]);
  t.equal(ran.exitCode, 0, ran.stderr);
  const { records } = await readDocument(file);
  const [record] = records;
  t.ok(
    record?.runs.every(({ values }) => values.gpu_mib === 0),
    'once the restored process has ended, nothing is taken any more',
  );
  t.match(
    record?.verdicts.find(({ what }) => what.startsWith('growth of GPU memory')),
    { value: 0, met: true },
  );
});

t.test('the plan: what runs, for how long, and what the budget leaves out', async (t) => {
  const plan = (...args: string[]) => cudapool(['bench', ...args, '--dry-run']);
  const lines = async (...args: string[]) => (await plan(...args)).stdout.trimEnd().split('\n');
  const all = await plan('all');
  t.equal(all.stdout.trimEnd().split('\n').length, allSuites.length);
  t.match(all.stderr, /^in all about \d+ s on a GPU$/m);
  const some = await plan('steady', 'tree', 'micro', '--seconds', '40', '--budget', '110');
  t.match(some.stdout.trimEnd().split('\n'), [
    /^steady: about 80 s: /,
    /^tree: left out, it takes about \d{3} s: /,
    /^micro: about 20 s: /, // a shorter one may still fit
  ]);
  t.match(some.stderr, /^in all about 100 s on a GPU, of 110 s$/m);
  t.match((await lines('sizes', '--budget', '1'))[0], /^sizes: about \d+ s: /, 'the first one is begun in any case');
  const [stockOnly] = await lines('sizes', '--gib', '32', '--ways', 'stock=1');
  const [hotOnly] = await lines('sizes', '--gib', '32', '--ways', 'hot-move=5,staged=2');
  t.match([stockOnly, hotOnly], [/about [67]\d s/, /about 5\d s/]);
});

t.test('a suite that does not fit into the budget any more is not begun', async (t) => {
  if (!skipUnless(t, isRoot && builtCriu('4.2.1').ready, 'needs root, and everything built')) return;
  const args = ['micro', 'tree', '--driver', 'softcuda', '--costs', 'none', '--runs', '1', '--warmup', '0'];
  const ran = await cudapool(['bench', ...args, '--budget', '10']);
  t.equal(ran.exitCode, 0, ran.stderr);
  t.match(ran.stderr, /left out, as the time budget of 10 s would not do: tree \(about \d+ s\)/);
  t.notMatch(ran.stdout, /### tree/);
});

t.test('a bench that cannot run says why', async (t) => {
  const cases: [args: string[], exit: number, message: RegExp][] = [
    [['--driver', 'gpu'], 3, /there is no usable GPU/],
    [['--driver', 'softcuda', '--costs', '/nonexistent'], 3, /\/nonexistent is missing/],
    [['--criu', '/nonexistent'], 3, /there is no such tree/],
    [['pytorch', '--driver', 'softcuda'], 3, /PyTorch needs a GPU/],
    [['load', '--ways', 'stock'], 2, /none of these suites compares ways back/],
  ];
  for (const [args, exit, message] of cases) {
    if (args.includes('gpu') && existsSync('/proc/driver/nvidia')) continue;
    const ran = await cudapool(['bench', ...args]);
    t.equal(ran.exitCode, exit, args.join(' '));
    t.match(ran.stderr, message);
    t.match(ran.stderr, /hint:/);
  }
  const wrong = await cudapool(['bench', 'sizes', '--ways', 'hot-move=0']);
  t.match(wrong, { exitCode: 2, stderr: /argument 'hot-move=0' is invalid/ });
});
