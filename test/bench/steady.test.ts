// SPDX-License-Identifier: MIT
// `bench steady` on the software driver: processes that take turns, with the shim and without; and what a killed bench has kept.
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { startPlayer } from '../../harness/adapters/turns.ts';
import { readDocument } from '../../harness/bench/record.ts';
import { built, cudapool, inRoot, isRoot, skipUnless, softCuda, tempDir } from '../support/index.ts';

const ready = isRoot && existsSync(join(built.softcudaLib, 'libcuda.so.1')) && existsSync(built.shim);
const scratchOf = (t: Test): string => {
  const scratch = mkdtempSync('/tmp/b');
  t.teardown(() => rmSync(scratch, { recursive: true, force: true }));
  return scratch;
};
const args = (...more: string[]) => ['bench', 'steady', '--driver', 'softcuda', '--costs', 'none', ...more];

t.test('processes take turns', async (t) => {
  if (!skipUnless(t, ready, 'needs root, and everything built')) return;
  const file = join(tempDir(t), 'record.json');
  const scratch = scratchOf(t);
  const env = { CUDAPOOL_SCRATCH: scratch, TMPDIR: scratch };
  const ran = await cudapool(args('--seconds', '4', '--json', file), { timeoutMs: 100_000, env });
  t.equal(ran.exitCode, 0, ran.stderr);
  const { records } = await readDocument(file);
  t.same(
    records.map(({ case: name }) => name),
    ['calls', 'launches', 'steps', 'python'],
  );
  for (const record of records) {
    t.ok(record.complete);
    t.equal(record.runs.length % 3, 0, 'whole rounds');
    t.ok(record.runs.every(({ verified, error }) => verified && error === undefined));
    const abreast = Number(record.setup.abreast);
    for (const [i, { variant, notes, values }] of record.runs.entries()) {
      const within = record.case === 'launches' || record.case === 'steps';
      t.equal(variant, (within ? ['past', 'through', 'again'] : ['without', 'with', 'again'])[i % 3]);
      const round = Math.floor(i / 3);
      t.equal(
        notes?.group,
        record.case === 'python' || record.case === 'steps' ? round % abreast : round,
        'each group in its turn',
      );
      t.ok(record.metrics.every(({ name }) => (values[name] ?? 0) > 0));
    }
    t.ok(
      record.verdicts.every(
        ({ answer, value }) => answer !== undefined && (value !== null || answer === 'cannot tell'),
      ),
      'each is answered',
    );
  }
  t.match(records[0]?.targets.map((target) => 'metric' in target && target.metric).sort(), [
    'free_host_16_ns',
    'free_host_1_ns',
    'get_current_16_ns',
    'get_current_1_ns',
    'record_1_ns',
  ]);
  const within = { kind: 'paired', variant: 'through', baseline: 'past', control: 'again', by: 'ratio', max: 1.01 };
  t.match(records[1]?.targets, [{ ...within, metric: 'launch_1_ns' }]);
  t.match(records[2]?.targets, [{ ...within, metric: 'step_ms' }]);
  t.match(ran.stderr, /steady \(calls\) run 1 without the shim: [\d.]+ ns/);
  t.match(ran.stdout, /cannot tell|holds|does not hold/);
});

t.test('parts of it', async (t) => {
  if (!skipUnless(t, ready, 'needs root, and everything built')) return;
  const file = join(tempDir(t), 'record.json');
  const scratch = scratchOf(t);
  const env = { CUDAPOOL_SCRATCH: scratch, TMPDIR: scratch };
  const some = await cudapool(args('--only', 'launches,steps', '--seconds', '2', '--json', file), { env });
  t.equal(some.exitCode, 0, some.stderr);
  const { records } = await readDocument(file);
  t.same(
    records.map(({ case: name, setup }) => [name, setup.seconds]),
    [
      ['launches', 0.75],
      ['steps', 1.25],
    ],
    'which share the time',
  );
  const none = await cudapool(args('--only', 'launches,dance'), { env });
  t.equal(none.exitCode, 2);
  t.match(none.stderr, /there is no part 'dance' here.*\n.*choose from calls, launches, steps, python/);
});

t.test('what a killed bench had measured is there', async (t) => {
  if (!skipUnless(t, ready, 'needs root, and everything built')) return;
  const file = join(tempDir(t), 'record.json');
  const scratch = scratchOf(t);
  const bench = spawn(inRoot('bin', 'cudapool'), args('--seconds', '600', '--json', file), {
    env: { ...process.env, CUDAPOOL_SCRATCH: scratch, TMPDIR: scratch },
    stdio: 'ignore',
    detached: true,
  });
  const ended = new Promise((resolve) => bench.once('exit', resolve));
  t.teardown(() => rmSync(`/dev/shm/cudapool-bench-${bench.pid}`, { recursive: true, force: true })); // it could not
  const runs = (): number => (existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).records[0].runs.length : 0);
  for (let i = 0; i < 1200 && runs() < 3 && bench.exitCode === null; i++) await sleep(50);
  process.kill(-(bench.pid as number), 'SIGKILL');
  await ended;
  const { records } = await readDocument(file);
  t.match(records, [{ suite: 'steady', case: 'calls', complete: false }]);
  t.ok((records[0]?.runs.length ?? 0) >= 3 && records[0]?.runs.every(({ verified }) => verified));
});

t.test('a program that takes turns', async (t) => {
  if (!skipUnless(t, ready, 'needs the software driver')) return;
  const { env } = softCuda(t);
  const player = await startPlayer([join(built.workloads, 'call_rate')], { env, readyMs: 20_000 });
  t.match(await player.turn('free_host 2 5', 10_000), { call: 'free_host', threads: 2 });
  await t.rejects(player.turn('dance 1 5', 10_000), {
    message: /did not answer 'dance 1 5': it ended/,
    lines: [/no such call/],
  });
  await player.end();
  const alone = await startPlayer([join(built.workloads, 'call_rate')], { env, readyMs: 20_000 });
  await t.rejects(alone.turn('launch 1 5 past', 10_000), { message: /it ended/, lines: [/no shim is between/] });
  await alone.end();
  const shimmed = { ...env, LD_PRELOAD: `${built.twoWays}:${built.shim}` };
  const both = await startPlayer([join(built.workloads, 'call_rate')], { env: shimmed, readyMs: 20_000 });
  for (const call of ['launch', 'get_current', 'record'])
    for (const way of ['', ' past', '', ' again'])
      t.match(await both.turn(`${call} 1 5${way}`, 10_000), { call, threads: 1 }, `${call}${way}`);
  await t.rejects(both.turn('launch 1 5 by', 10_000), { message: /it ended/, lines: [/no such call: launch by/] });
  await both.end();
  await t.rejects(startPlayer(['/nonexistent/program'], { env, readyMs: 5000 }), {
    message: /did not become ready: .*ENOENT/,
  });
  await t.rejects(startPlayer(['sleep', '60'], { env, readyMs: 50 }), { message: /no answer within 0.05 s/ });
});
