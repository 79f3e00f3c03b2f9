// SPDX-License-Identifier: MIT
// The patched plugin with the real pool and the software driver: GPU memory is intact whatever was killed when.
import { existsSync } from 'node:fs';
import t from 'tap';
import { built, inRoot, skipUnless } from '../support/index.ts';
import { expect, type Outcome, scenario, versions, whyNot } from './support.ts';

const pool = { CRIU_CUDA_CONTEXT_POOL: '1', DAEMON: built.cudapoold, DRIVER: inRoot('softcuda') };
const well = { dump: '0', restore: '0', gone: '0', alive: '3' };

interface Case {
  name: string;
  script: string;
  env?: Record<string, string>;
  wanted: Record<string, string>;
  also?: (t: typeof import('tap').t, outcome: Outcome) => void;
}

const cases: Case[] = [
  {
    name: 'five times in a row, nothing executed, nothing held',
    script:
      'start_gpu_app 3; start_cudapoold; for i in 1 2 3 4 5; do rm -rf "$T/img"; mkdir "$T/img"; dump; left gone; restore; answers alive; APP=$(pgrep -o -x gpuapp); done; pool_counts',
    // No cuda-checkpoint at all: whatever is not done through the pool fails.
    env: { TOOLS: '/nonexistent' },
    wanted: { ...well, held: '0', given_back: '0' },
    also: (t, o) => t.match(o.log('restore'), 'GPU state of 3 process(es) restored'),
  },
  {
    name: 'a pool is started on demand and stays for the restore',
    script:
      'start_gpu_app 3; export CUDAPOOL_START=1 CUDAPOOL_DAEMON=$DAEMON; dump; left gone; restore; answers alive; pgrep -c -x cudapoold | sed s/^/pools=/; "$DAEMON" --stop --socket "$CUDAPOOL_SOCKET"',
    wanted: { ...well, pools: '1' },
    also: (t, o) => t.match(o.log('dump'), 'GPU context pool: started a pool'),
  },
  {
    name: 'a restore that the driver refuses: CRIU fails within a second, nothing is left, the next one works',
    script:
      'start_gpu_app 3; start_cudapoold; dump; fault restore=2; restore; left gone; fault; NAME=again restore; answers alive; pool_counts',
    wanted: { dump: '0', restore: '1', gone: '0', again: '0', alive: '3', held: '0' },
    also: (t, o) => t.ok(Number(o.values.restore_ms) < 1000, `${o.values.restore_ms} ms`),
  },
  {
    name: 'a checkpoint that the driver refuses: the dump fails, the application runs on',
    script: 'start_gpu_app 3; start_cudapoold; fault checkpoint=2; dump; fault; answers alive; pool_counts',
    wanted: { dump: '1', alive: '3', held: '0' },
  },
  {
    name: 'the keeper is killed while processes are restored',
    script:
      'start_gpu_app 3; start_cudapoold; dump; left gone; fault restore=hang:800; (sleep 0.5; kill -KILL $POOL) & restore; fault; answers alive',
    wanted: well,
  },
  {
    name: 'the keeper is killed while a process is checkpointed',
    script:
      'start_gpu_app 3; start_cudapoold; fault checkpoint=hang:600; (sleep 0.4; kill -KILL $POOL) & dump; fault; left gone; restore; answers alive',
    wanted: well,
  },
  {
    name: 'the worker is killed while processes are restored',
    script:
      'start_gpu_app 3; start_cudapoold; dump; left gone; fault restore=hang:800; (sleep 0.5; pkill -KILL -P $POOL) & restore; fault; answers alive',
    wanted: well,
  },
  {
    name: 'CRIU is killed in the dump: the pool gives back what it had locked, the application runs on',
    script:
      'start_gpu_app 3; start_cudapoold; fault checkpoint=hang:500; (sleep 0.4; pkill -KILL -x criu) & dump; fault; sleep 1; answers alive; pool_counts',
    wanted: { dump: '137', alive: '3', held: '0', given_back: '3' },
  },
  {
    name: 'pages of zeros are left out of the image, and are zeros afterwards',
    script: 'start_gpu_app 3; start_cudapoold; dump; left gone; image_mib; restore; answers alive',
    wanted: well,
    also: (t, o) => {
      t.match(o.log('dump'), /1[56] MiB of zero pages of pid \d+ left out/);
      t.ok(Number(o.values.image_mib) < 3 * 16, `${o.values.image_mib} MiB`);
    },
  },
  {
    name: 'CUDAPOOL_DROP_ZERO_PAGES=0 leaves them in',
    script: 'start_gpu_app 3; start_cudapoold; dump; left gone; image_mib; restore; answers alive',
    env: { CUDAPOOL_DROP_ZERO_PAGES: '0' },
    wanted: well,
    also: (t, o) => t.ok(Number(o.values.image_mib) >= 3 * 16, `${o.values.image_mib} MiB`),
  },
  {
    name: 'off: NVIDIA’s way with the same driver, for comparison',
    script: 'start_gpu_app 3; dump; left gone; restore; answers alive',
    env: { CRIU_CUDA_CONTEXT_POOL: '0' },
    wanted: well,
  },
];

t.test('with the software driver', async (t) => {
  const reason = whyNot(versions[0]);
  if (!skipUnless(t, reason === undefined, reason ?? '')) return;
  const there = existsSync(built.cudapoold) && existsSync(inRoot('softcuda', 'lib', 'libcuda.so.1'));
  if (!skipUnless(t, there, 'pool or software driver is not built: bin/cudapool setup')) return;
  t.jobs = 2;
  for (const { name, script, env, wanted, also } of cases) {
    t.test(name, async (t) => {
      const { TOOLS, ...rest } = env ?? {};
      const outcome = await scenario(t, script, { env: { ...pool, ...rest }, tools: TOOLS ?? `${pool.DRIVER}/bin` });
      expect(t, outcome, wanted);
      also?.(t as unknown as typeof import('tap').t, outcome);
    });
  }
});
