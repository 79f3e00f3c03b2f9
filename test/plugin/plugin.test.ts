// SPDX-License-Identifier: MIT
// The patched plugin in real CRIU: through a pool, without one, and when either fails in the middle.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { tempDir } from '../support/index.ts';
import {
  type Case,
  canRun,
  count,
  expect,
  type Outcome,
  programs,
  runCasesWithEach,
  scenario,
  soon,
} from './support.ts';

const pool = { CRIU_CUDA_CONTEXT_POOL: '1' };
const atOnce = { CRIU_CUDA_PARALLEL_RESTORE: '1' };
const oneByOne = { CRIU_CUDA_PARALLEL_RESTORE: '0' };
const well = { dump: '0', restore: '0', gone: '0' };
/** A dump and a restore, both asked for what they left. */
const round = 'dump; left gone; restore; answers alive; states after';

const acts = (outcome: Outcome): string[] => outcome.pool.filter((line) => / done$/.test(line));
const begun = (outcome: Outcome, op: string): number[] =>
  outcome.pool.flatMap((line, i) => (line.startsWith(`${op} `) && line.includes('limit') ? [i] : []));
const firstDone = (outcome: Outcome, op: string): number =>
  outcome.pool.findIndex((line) => line.startsWith(`${op} `) && line.endsWith(' done'));

const cases: Case[] = [
  {
    name: 'with the pool: nothing is executed, and the guide finds its messages',
    script: `start_app 1 0; start_pool; ${round}`,
    options: { env: pool },
    wanted: { ...well, alive: '1', after: '0x1' },
    both: true,
    also: (t, o) => {
      t.strictSame(o.executed, [], 'no cuda-checkpoint was executed');
      t.strictSame(
        acts(o).map((line) => line.split(' ')[0]),
        ['lock', 'checkpoint', 'restore', 'unlock'],
      );
      for (const name of ['dump', 'restore']) {
        t.match(o.log(name), 'Initializing GPU context pool...');
        t.match(o.log(name), 'GPU context pool initialized successfully: ctx=0xabcd00 device=0');
        t.match(o.log(name), 'GPU context pool ENABLED - expect faster restore');
      }
      t.match(o.log('restore'), 'Warm context set');
      t.ok(o.pool.includes('release 0'), 'the pool watches that the processes of a dump die');
    },
  },
  {
    name: 'a tree: all processes are restored at once, those without CUDA are left alone',
    script: `start_app 4 2; start_pool --restore-ms 1000; ${round}`,
    options: { env: pool },
    wanted: { ...well, alive: '6', after: '0x4' },
    both: true,
    also: (t, o) => {
      t.strictSame(o.executed, []);
      t.ok(
        begun(o, 'restore').every((at) => at < firstDone(o, 'restore')),
        'every restore began before the first had ended',
      );
      t.ok(Number(o.values.restore_ms) < 4000, `${o.values.restore_ms} ms for four times 1000 ms`);
    },
  },
  {
    name: 'the pool, and PARALLEL_RESTORE=0: one after another',
    script: `start_app 3 0; start_pool --restore-ms 50; ${round}`,
    options: { env: { ...pool, ...oneByOne } },
    wanted: { ...well, alive: '3', after: '0x3' },
    also: (t, o) => {
      const order = o.pool.filter((line) => /^(restore|unlock) \d+ limit/.test(line)).map((line) => line.split(' ')[0]);
      t.strictSame(order, ['restore', 'unlock', 'restore', 'unlock', 'restore', 'unlock']);
      t.match(
        o.pool.filter((line) => line.startsWith('hello')),
        [/parallel 0/, /parallel 0/],
      );
    },
  },
  {
    name: 'the options reach the pool',
    script: `start_app 1 0; start_pool; ${round}`,
    options: { env: { ...pool, ...atOnce, CRIU_CUDA_STREAMS: '8', CRIU_CUDA_CHUNK_MB: '256' } },
    wanted: { ...well, alive: '1' },
    also: (t, o) =>
      t.match(
        o.pool.filter((line) => line.startsWith('hello')),
        [/parallel 1 streams 8 chunk 256/, /parallel 1 streams 8 chunk 256/],
      ),
  },
  {
    name: 'the options from a file, as the environment does not get through podman 4.3.1',
    script: `printf '%s\\n' '# for CRIU' CRIU_CUDA_CONTEXT_POOL=1 CRIU_CUDA_STREAMS=4 >"$T/conf"; start_app 1 0; start_pool; ${round}`,
    wanted: { ...well, alive: '1' },
    also: (t, o) => {
      t.strictSame(o.executed, []);
      t.match(o.pool[0], /streams 4/);
    },
  },
  {
    name: 'off: as upstream, said once',
    script: `start_app 2 1; start_pool; ${round}`,
    wanted: { ...well, alive: '3', after: '0x2' },
    both: true,
    also: (t, o) => {
      t.strictSame(
        o.pool.filter((line) => line.startsWith('hello')),
        [],
        'the pool was not asked',
      );
      t.equal(o.executed.filter((line) => /^(lock|checkpoint|restore|unlock) /.test(line)).length, 8);
      for (const name of ['dump', 'restore']) t.equal(count(o.log(name), 'GPU context pool is off'), 1);
    },
  },
  {
    name: 'off: a failing GPU restore is the success that upstream makes of it',
    script: 'start_app 1 0; dump; export FAKE_TOOL_FAIL=restore; restore; states after',
    wanted: { dump: '0', restore: '0', after: '2x1' },
  },
  {
    name: 'off, STREAMS and CHUNK_MB set: no effect, said',
    script: `start_app 1 0; ${round}`,
    options: { env: { CRIU_CUDA_STREAMS: '8', CRIU_CUDA_CHUNK_MB: '256' } },
    wanted: { ...well, alive: '1' },
    also: (t, o) =>
      t.equal(count(o.log('restore'), 'CRIU_CUDA_STREAMS and CRIU_CUDA_CHUNK_MB are for the context pool'), 1),
  },
  {
    name: 'off, PARALLEL_RESTORE=1: several cuda-checkpoint at once',
    script: `export FAKE_TOOL_RESTORE_MS=1000; start_app 4 0; ${round}`,
    options: { env: atOnce },
    wanted: { ...well, alive: '4', after: '0x4' },
    both: true,
    also: (t, o) => t.ok(Number(o.values.restore_ms) < 4000, `${o.values.restore_ms} ms for four times 1000 ms`),
  },
  {
    name: 'off, PARALLEL_RESTORE=1: a failure fails the restore',
    script:
      'start_app 3 0; dump; export FAKE_TOOL_FAIL=unlock; restore; left gone; unset FAKE_TOOL_FAIL; as_dumped; NAME=again restore; answers alive',
    options: { env: atOnce },
    wanted: { dump: '0', restore: '1', gone: '0', again: '0', alive: '3' },
  },
  {
    name: 'a mistake in the options: said, and as upstream',
    script: `start_app 1 0; start_pool; ${round}`,
    options: { env: { ...pool, CRIU_CUDA_STREAMS: 'many' } },
    wanted: { ...well, alive: '1', after: '0x1' },
    also: (t, o) => {
      t.match(o.log('restore'), /Error .*CRIU_CUDA_STREAMS/);
      t.match(o.log('restore'), 'GPU context pool and parallel restore are off');
      t.ok(o.executed.length > 0);
    },
  },
  {
    name: 'no pool, and none may be started: as upstream, said once',
    script: `start_app 2 0; ${round}`,
    options: { env: pool },
    wanted: { ...well, alive: '2', after: '0x2' },
    both: true,
    also: (t, o) => {
      for (const name of ['dump', 'restore']) t.equal(count(o.log(name), 'GPU context pool not available'), 1);
    },
  },
  {
    name: 'no pool and no cuda-checkpoint: the restore fails at its very start',
    script: 'start_app 1 0; start_pool; dump; stop_pool; export PATH=/usr/bin:/bin; restore; left gone',
    options: { env: pool },
    wanted: { dump: '0', restore: '1', gone: '0' },
    also: (t, o) => t.match(o.log('restore'), 'This checkpoint needs a pool, or a cuda-checkpoint'),
  },
  {
    name: 'a pool of another version: as upstream',
    script: `start_app 1 0; start_pool --version 7; ${round}`,
    options: { env: pool },
    wanted: { ...well, alive: '1', after: '0x1' },
    also: (t, o) => t.match(o.log('dump'), /not available \(.*version 7/),
  },
  {
    name: 'a pool without a driver: as upstream',
    script: `start_app 1 0; start_pool --failed; ${round}`,
    options: { env: pool },
    wanted: { ...well, alive: '1', after: '0x1' },
    also: (t, o) => t.match(o.log('dump'), 'not available (there is no driver in this test)'),
  },
  {
    name: 'a pool without a GPU: as upstream',
    script: `start_app 1 0; start_pool --devices 0; ${round}`,
    options: { env: pool },
    wanted: { ...well, alive: '1', after: '0x1' },
    also: (t, o) => t.match(o.log('dump'), 'its driver finds no GPU'),
  },
  {
    name: 'a pool that is still warming up: the restore goes on and waits when it needs the driver',
    script: `start_app 1 0; start_pool; dump; stop_pool; start_pool --warm-ms 700; left gone; restore; answers alive; states after`,
    options: { env: pool },
    wanted: { ...well, alive: '1', after: '0x1' },
    also: (t, o) => {
      t.match(o.log('restore'), 'GPU context pool is warming up');
      t.match(o.log('restore'), 'GPU context pool initialized successfully');
      t.match(o.log('restore'), 'Warm context set');
      t.strictSame(o.executed, []);
    },
  },
  {
    name: 'leave-running gives everything back itself',
    script: 'start_app 2 0; start_pool; dump -R; answers alive; states after',
    options: { env: pool },
    wanted: { dump: '0', alive: '2', after: '0x2' },
    also: (t, o) => {
      t.strictSame(o.executed, []);
      t.notOk(o.pool.some((line) => line.startsWith('release')));
    },
  },
  {
    name: 'leave-stopped keeps what is checkpointed',
    script: 'start_app 1 0; start_pool; dump -s; states after',
    options: { env: pool },
    wanted: { dump: '0', after: '2x1' },
    also: (t, o) => t.ok(o.pool.includes('release 1')),
  },
  {
    name: 'a lock that the driver refuses: the dump fails, the application runs on',
    script: 'start_app 3 0; start_pool --fault lock:refuse@3; dump; answers alive; states after',
    options: { env: pool },
    wanted: { dump: '1', alive: '3', after: '0x2' }, // the third never was anything else
    both: true,
  },
  {
    name: 'a checkpoint that the driver refuses: the dump fails, the application runs on',
    script: 'start_app 3 0; start_pool --fault checkpoint:refuse@2; dump; answers alive; states after',
    options: { env: pool },
    wanted: { dump: '1', alive: '3', after: '0x3' },
  },
  {
    name: 'one deadline for the tree: each lock gets what is left',
    script: 'start_app 3 0; start_pool; dump --timeout 3',
    options: { env: pool },
    wanted: { dump: '0' },
    also: (t, o) => {
      const limits = o.pool.flatMap(
        (line) =>
          line
            .match(/^lock \d+ limit (\d+)/)
            ?.slice(1)
            .map(Number) ?? [],
      );
      t.equal(limits.length, 3);
      t.ok(
        limits.every((limit, i) => limit < 3000 && limit > 1000 && (i === 0 || limit <= (limits[i - 1] ?? 0))),
        limits.join(', '),
      );
    },
  },
  {
    name: 'a pool that hangs in a lock: the dump fails in time, the application runs on',
    script: 'start_app 2 0; start_pool --fault lock:hang@2; dump --timeout 2; answers alive; states after',
    options: { env: pool },
    wanted: { dump: '1', alive: '2', after: '0x1' },
    also: (t, o) => t.ok(Number(o.values.dump_ms) < 10_000, `${o.values.dump_ms} ms`),
  },
  ...(['lock', 'checkpoint'] as const).flatMap((op) =>
    (['die', 'die-after'] as const).map(
      (fault): Case => ({
        name: `a pool that ends ${fault === 'die' ? 'before' : 'after'} a ${op} is carried out: cuda-checkpoint goes on from there`,
        script: `start_app 3 0; start_pool --fault ${op}:${fault}@2; dump; left gone; states between; restore; answers alive; states after`,
        options: { env: pool },
        wanted: { ...well, between: '2x3', alive: '3', after: '0x3' },
        also: (t, o) => t.equal(count(o.log('dump'), 'GPU context pool lost'), 1),
      }),
    ),
  ),
  ...(['restore', 'unlock'] as const).flatMap((op) =>
    (['die', 'die-after', 'own'] as const).map(
      (fault): Case => ({
        name: `a pool that ${fault === 'own' ? 'cannot carry out a' : fault === 'die' ? 'ends before a' : 'ends after a'} ${op}: cuda-checkpoint goes on from there`,
        script: `start_app 3 1; start_pool; dump; left gone; stop_pool; start_pool --restore-ms 20 --fault ${op}:${fault}@2; restore; answers alive; states after`,
        options: { env: pool },
        wanted: { ...well, alive: '4', after: '0x3' },
        ...(fault === 'die' && { both: true }),
        also: (t, o) => t.equal(count(o.log('restore'), 'GPU context pool lost'), 1),
      }),
    ),
  ),
  {
    name: 'a pool that ends in a dump where there is no cuda-checkpoint: the dump fails',
    script: 'export PATH=/usr/bin:/bin; start_app 2 0; start_pool --fault checkpoint:die; dump; answers alive',
    options: { env: pool },
    wanted: { dump: '1', alive: '2' },
  },
  {
    name: 'a pool that ends in a restore where there is no cuda-checkpoint: the restore fails and can be repeated',
    script:
      'export PATH=/usr/bin:/bin; start_app 2 0; start_pool; dump; stop_pool; start_pool --fault restore:die; restore; left gone; as_dumped; start_pool; NAME=again restore; answers alive',
    options: { env: pool },
    wanted: { dump: '0', restore: '1', gone: '0', again: '0', alive: '2' },
  },
  ...(['start_app', 'start_contained_app'] as const).flatMap((start) =>
    (['1 0', '3 1'] as const).map(
      (tree): Case => ({
        name: `a GPU restore that fails, ${tree === '1 0' ? 'one process' : 'a tree'}${start === 'start_app' ? '' : ' in its own pid namespace'}: CRIU fails within a second, nothing is left, the next restore works`,
        script: `${start} ${tree}; start_pool --fault restore:refuse@${tree === '1 0' ? 1 : 2}; dump; restore; left gone; as_dumped; NAME=again restore; answers alive; states after`,
        options: { env: pool },
        wanted: {
          dump: '0',
          restore: '1',
          gone: '0',
          again: '0',
          alive: tree === '1 0' ? '1' : '4',
          after: tree === '1 0' ? '0x1' : '0x3',
        },
        both: true,
        also: (t, o) => t.ok(...soon(o, 'restore')),
      }),
    ),
  ),
  {
    name: 'failing twenty times in a row leaves nothing: no order in which threads end makes CRIU wait',
    script:
      'start_contained_app 4 1; start_pool; dump; stop_pool; start_pool --fault restore:refuse@each; for i in $(seq 20); do NAME=r$i restore; done; left gone',
    options: { env: pool },
    wanted: { dump: '0', gone: '0' },
    also: (t, o) => {
      const runs = Array.from({ length: 20 }, (_, i) => `r${i + 1}`);
      t.strictSame(
        runs.map((run) => o.values[run]),
        runs.map(() => '1'),
      );
      t.ok(...soon(o, ...runs));
    },
  },
  {
    name: 'a GPU restore that fails, one after another',
    script:
      'start_app 3 0; start_pool --fault restore:refuse@2; dump; restore; left gone; as_dumped; NAME=again restore; answers alive',
    options: { env: { ...pool, ...oneByOne } },
    wanted: { dump: '0', restore: '1', gone: '0', again: '0', alive: '3' },
  },
  {
    name: 'an unlock that fails fails the restore too',
    script:
      'start_app 2 0; start_pool --fault unlock:refuse@2; dump; restore; left gone; as_dumped; NAME=again restore; answers alive',
    options: { env: pool },
    wanted: { dump: '0', restore: '1', gone: '0', again: '0', alive: '2' },
  },
  {
    name: 'no process answers to the driver any more: the restore fails',
    script: 'start_app 1 0; start_pool; dump; stop_pool; start_pool --fault tid:refuse; restore; left gone',
    options: { env: pool },
    wanted: { dump: '0', restore: '1', gone: '0' },
    also: (t, o) => t.match(o.log('restore'), 'No process of the tree answers to the CUDA driver'),
  },
  {
    name: 'several dumps and restores in a row; the name is in the inventory once',
    script:
      'start_app 2 0; start_pool; for i in 1 2 3; do rm -rf "$T/img"; mkdir "$T/img"; dump; restore; APP=$(pgrep -o -x cuda-app); done; answers alive; states after',
    options: { env: pool },
    wanted: { dump: '0', restore: '0', alive: '2', after: '0x2' },
  },
  {
    name: 'a tree without CUDA needs nothing of the plugin at restore',
    script: 'start_app 0 2; start_pool; dump; stop_pool; restore; answers alive',
    options: { env: pool },
    wanted: { dump: '0', restore: '0', alive: '2' },
    also: (t, o) => t.notMatch(o.log('restore'), 'GPU context pool not available'),
  },
];

runCasesWithEach(t, cases);

t.test('the plugin starts a pool where there is none, with an end', async (t) => {
  if (!canRun(t)) return;
  const daemon = join(tempDir(t), 'cudapoold');
  writeFileSync(daemon, `#!/bin/sh\nexec "${await programs()}/fakepool" "$@"\n`, { mode: 0o755 });
  const outcome = await scenario(t, `start_app 1 0; ${round}; ps -eo comm= | grep -c fakepool | sed s/^/pools=/`, {
    env: { ...pool, CUDAPOOL_START: '1', CUDAPOOL_DAEMON: daemon },
  });
  expect(t, outcome, { ...well, alive: '1', after: '0x1', pools: '1' });
  t.strictSame(outcome.executed, []);
  t.strictSame(
    outcome.pool.filter((line) => line.startsWith('started')),
    ['started with idle 600'],
  );
});
