// SPDX-License-Identifier: MIT
// The patched plugin with the real pool and the software driver: GPU memory is intact whatever was killed when.
import { existsSync } from 'node:fs';
import t from 'tap';
import { built, inRoot, skipUnless } from '../support/index.ts';
import { type Case, canRun, runCases, soon } from './support.ts';

const pool = { CRIU_CUDA_CONTEXT_POOL: '1', DAEMON: built.cudapoold, DRIVER: inRoot('softcuda') };
const well = { dump: '0', restore: '0', gone: '0', alive: '3' };

const cases: Case[] = [
  {
    name: 'five times in a row, nothing executed, nothing held',
    script:
      'start_gpu_app 3; start_cudapoold; for i in 1 2 3 4 5; do rm -rf "$T/img"; mkdir "$T/img"; dump; left gone; restore; answers alive; APP=$(pgrep -o -x gpuapp); done; pool_counts',
    // No cuda-checkpoint at all: whatever is not done through the pool fails.
    options: { tools: '/nonexistent' },
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
    also: (t, o) => t.ok(...soon(o, 'restore')),
  },
  {
    name: 'a checkpoint that the driver refuses: the dump fails, the application runs on',
    script: 'start_gpu_app 3; start_cudapoold; fault checkpoint=2; dump; fault; answers alive; pool_counts',
    wanted: { dump: '1', alive: '3', held: '0' },
  },
  {
    name: 'the keeper is killed while processes are restored',
    script:
      'start_gpu_app 3; start_cudapoold; dump; left gone; fault restore=hang:1500; (driver_busy; kill -KILL $POOL) & restore; fault; answers alive',
    wanted: well,
  },
  {
    name: 'the keeper is killed while a process is checkpointed',
    script:
      'start_gpu_app 3; start_cudapoold; fault checkpoint=hang:1500; (driver_busy; kill -KILL $POOL) & dump; fault; left gone; restore; answers alive',
    wanted: well,
  },
  {
    name: 'the worker is killed while processes are restored',
    script:
      'start_gpu_app 3; start_cudapoold; dump; left gone; fault restore=hang:1500; (driver_busy; pkill -KILL -P $POOL) & restore; fault; answers alive',
    wanted: well,
  },
  {
    name: 'CRIU is killed in the dump: the pool gives back what it had locked, the application runs on',
    script:
      "start_gpu_app 3; start_cudapoold; fault checkpoint=hang:1500; (driver_busy; pkill -KILL -x criu) & dump; fault; wait_for 'pool_counts | grep -qx held=0'; answers alive; pool_counts",
    wanted: { dump: '137', alive: '3', held: '0', given_back: '3' },
  },
  {
    name: 'pages of zeros are left out of the image, and are zeros afterwards',
    script: 'start_gpu_app 3; start_cudapoold; dump; left gone; image_mib; restore; answers alive',
    wanted: well,
    also: (t, o) => {
      t.match(o.log('dump'), /(19|2\d) MiB of zero pages of pid \d+ left out/);
      t.ok(Number(o.values.image_mib) < 3 * 16, `${o.values.image_mib} MiB`);
    },
  },
  {
    name: 'twenty dumps with a changing pattern of zero and other pages, and locked ones',
    script:
      'start_gpu_app 1; start_cudapoold; for i in $(seq 20); do rm -rf "$T/img"; mkdir "$T/img"; dump; restore; answers alive; [ $alive = 1 ] && good=$((good + 1)); APP=$(pgrep -o -x gpuapp); done; echo good=$good',
    wanted: { dump: '0', restore: '0', alive: '1', good: '20' },
    also: (t, o) => t.ok(Number(o.log('dump').match(/left out, (\d+) runs/)?.[1]) > 20, 'many runs'),
  },
  {
    name: 'a page that holds something in the parent image and zeros now is zeros afterwards',
    // Not by --prev-images-dir: that needs a kernel that tracks memory.
    script:
      'start_gpu_app 3; start_cudapoold; NAME=before dump --leave-running; mv "$T/img" "$T/before"; mkdir "$T/img"; answers changed; dump; ln -s ../before "$T/img/parent"; left gone; restore; answers alive',
    wanted: { before: '0', changed: '3', ...well },
    also: (t, o) => {
      t.match(o.log('dump'), /[1-9]\d* MiB of zero pages of pid \d+ left out/);
      t.match(o.log('restore'), /Opened local page read \d+ \(parent 1\)/, 'the parent is in use');
    },
  },
  {
    name: 'a process with an AIO ring is left alone',
    script: 'start_gpu_app 1 aio; start_cudapoold; dump; left gone; restore; answers alive',
    wanted: { ...well, alive: '1' },
    also: (t, o) => t.match(o.log('dump'), 'stay in the image: it reads and writes asynchronously'),
  },
  {
    name: 'a process with userfaultfd is left alone, and runs on after CRIU has refused it',
    script: 'start_gpu_app 1 userfaultfd; start_cudapoold; dump; answers alive',
    wanted: { dump: '1', alive: '1' },
    also: (t, o) => t.match(o.log('dump'), 'stay in the image: its memory is in use by userfaultfd'),
  },
  {
    name: 'CUDAPOOL_DROP_ZERO_PAGES=0 leaves them in',
    script: 'start_gpu_app 3; start_cudapoold; dump; left gone; image_mib; restore; answers alive',
    options: { env: { CUDAPOOL_DROP_ZERO_PAGES: '0' } },
    wanted: well,
    also: (t, o) => t.ok(Number(o.values.image_mib) >= 3 * 16, `${o.values.image_mib} MiB`),
  },
  {
    name: 'a dump whose post-dump script fails: CRIU says nothing of it to its plugins, and the pool gives back what it had locked',
    script:
      'start_gpu_app 2; start_cudapoold; printf \'#!/bin/sh\\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\\n\' >"$T/script"; chmod +x "$T/script"; dump --action-script "$T/script"; answers alive; pool_counts; rm -rf "$T/img"; mkdir "$T/img"; NAME=again dump; left gone; restore; answers restored',
    // 255 is what CRIU makes of the script's 1.
    wanted: { dump: '255', alive: '2', held: '0', given_back: '2', again: '0', gone: '0', restore: '0', restored: '2' },
  },
  {
    name: 'a pool that was killed has left its socket: another is started',
    script:
      'start_gpu_app 2; start_cudapoold; kill -KILL $POOL; wait $POOL 2>/dev/null; test -S "$CUDAPOOL_SOCKET"; echo stale=$?; export CUDAPOOL_START=1 CUDAPOOL_DAEMON=$DAEMON; dump; left gone; restore; answers alive; pgrep -c -x cudapoold | sed s/^/pools=/; "$DAEMON" --stop --socket "$CUDAPOOL_SOCKET"',
    wanted: { ...well, stale: '0', alive: '2', pools: '1' },
    also: (t, o) => t.match(o.log('dump'), 'GPU context pool: started a pool'),
  },
  {
    name: 'no /proc/driver/nvidia, nothing forced: the pool knows of the GPU',
    script: 'no_proc_driver; start_gpu_app 3; start_cudapoold; dump; left gone; restore; answers alive',
    options: { tools: '/nonexistent' },
    wanted: well,
  },
  {
    name: 'no /proc/driver/nvidia, and a pool without a GPU: a dump is as upstream’s, a restore fails and says why',
    script:
      'no_proc_driver; start_gpu_app 2; SOFTCUDA_DEVICES=0 start_cudapoold; pool_ready; dump; answers alive; stop_pool; start_cudapoold; rm -rf "$T/img"; mkdir "$T/img"; NAME=second dump; stop_pool; SOFTCUDA_DEVICES=0 start_cudapoold; pool_ready; restore; left gone; stop_pool; start_cudapoold; NAME=again restore; answers restored',
    wanted: { dump: '1', alive: '2', second: '0', restore: '1', gone: '0', again: '0', restored: '2' },
    also: (t, o) => {
      t.match(o.log('dump'), 'No GPU device found; CUDA plugin is disabled');
      t.match(o.log('restore'), 'This checkpoint needs a GPU: no pool, and no GPU found');
      for (const name of ['dump', 'restore']) t.match(o.log(name), 'GPU context pool not available (');
    },
  },
  {
    name: 'off: NVIDIA’s way with the same driver, for comparison',
    script: 'start_gpu_app 3; dump; left gone; restore; answers alive',
    options: { env: { CRIU_CUDA_CONTEXT_POOL: '0' } },
    wanted: well,
  },
];

t.test('with the software driver', async (t) => {
  if (!canRun(t)) return;
  const there = existsSync(built.cudapoold) && existsSync(inRoot('softcuda', 'lib', 'libcuda.so.1'));
  if (!skipUnless(t, there, 'pool or software driver is not built: bin/cudapool setup')) return;
  runCases(t, cases, (_, { options }) => ({
    tools: `${pool.DRIVER}/bin`,
    ...options,
    env: { ...pool, ...options?.env },
  }));
});
