// SPDX-License-Identifier: MIT
// Parked GPU memory with the real pool, the shim and the software driver: intact whatever failed or was killed when.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { built, inRoot, skipUnless } from '../support/index.ts';
import { type Case, canRun, count, type Outcome, patchedTree, runCases, soon, versions } from './support.ts';

const env = {
  CRIU_CUDA_CONTEXT_POOL: '1',
  DAEMON: built.cudapoold,
  DROPIN: built.dropin,
  DRIVER: inRoot('softcuda'),
  SHIM: built.shim,
  STOCK: join(patchedTree(versions[0]), 'stock'),
};
const start = 'start_gpu_app 3; start_cudapoold';
const dumped = `${start}; dump; left gone; parked_images images`;
/** Another pool is to be had when the first is gone. */
const spawning = 'export CUDAPOOL_START=1 CUDAPOOL_DAEMON=$DAEMON';
const end = '"$DAEMON" --stop --socket "$CUDAPOOL_SOCKET" >/dev/null; true';
const fresh = 'rm -rf "$T/img"; mkdir "$T/img"';
const well = { dump: '0', gone: '0', images: '3', restore: '0', alive: '3' };
const failingScript =
  'printf \'#!/bin/sh\\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\\n\' >"$T/script"; chmod +x "$T/script"';

const paths = (outcome: Outcome, name = 'restore'): string[] =>
  [...outcome.log(name).matchAll(/pid \d+: ([a-z-]+), 18 MiB of GPU memory mapped back/g)].map((match) =>
    String(match[1]),
  );

const cases: Case[] = [
  {
    name: 'five times in a row, nothing held',
    script: `${start}; for i in 1 2 3 4 5; do ${fresh}; dump; left gone; parked_images images; restore; answers alive; APP=$(pgrep -o -x gpuapp); done; pool_counts`,
    wanted: { ...well, held: '0', given_back: '0' },
    also: (t, o) => {
      t.strictSame(paths(o), ['hot-move', 'hot-move', 'hot-move']);
      t.equal(count(o.log('dump'), /18 MiB of GPU memory parked, \d+ MiB left to the driver/), 3);
    },
  },
  {
    name: 'the option off at the restore, the pool started anew: from the images',
    script: `${dumped}; stop_pool; start_cudapoold; CRIU_CUDA_CONTEXT_POOL=0 restore; answers alive; pool_counts`,
    wanted: { ...well, held: '0' },
    also: (t, o) => t.strictSame(paths(o), ['loaded', 'loaded', 'loaded']),
  },
  {
    name: 'a second restore of the same checkpoint',
    script: `${dumped}; restore; answers alive; end_app; NAME=again restore; answers second`,
    wanted: { ...well, again: '0', second: '3' },
  },
  {
    name: 'leave-running: memory comes back, the checkpoint can be restored',
    script: `${start}; dump -R; answers running; parked_images images; pool_counts; end_app; left gone; restore; answers alive`,
    wanted: { ...well, running: '3', held: '0', given_back: '0' },
    also: (t, o) => t.strictSame(paths(o, 'dump'), ['returned', 'returned', 'returned']),
  },
  {
    name: 'leave-stopped keeps what is parked, and the checkpoint can be restored',
    script: `${start}; dump -s; parked_images images; end_app; left gone; restore; answers alive`,
    wanted: well,
  },
  {
    name: 'a checkpoint that the driver refuses after parking: memory comes back, no image stays, the next dump works',
    script: `${start}; fault checkpoint=2; dump; fault; answers alive; parked_images images; pool_counts; ${fresh}; NAME=again dump; left gone; restore; answers restored`,
    wanted: { dump: '1', alive: '3', images: '0', held: '0', again: '0', gone: '0', restore: '0', restored: '3' },
    also: (t, o) => t.strictSame(paths(o, 'dump'), ['returned', 'returned', 'returned']),
  },
  {
    name: 'a post-dump script that fails: the pool gives memory back',
    script: `${start}; ${failingScript}; dump --action-script "$T/script"; answers alive; pool_counts; ${fresh}; NAME=again dump; left gone; restore; answers restored`,
    // 255 is what CRIU makes of the script's 1.
    wanted: { dump: '255', alive: '3', held: '0', given_back: '3', again: '0', gone: '0', restore: '0', restored: '3' },
  },
  {
    name: 'CRIU is killed between pausing and checkpointing: the pool gives memory back',
    script: `${start}; fault lock=hang:400; (wait_for 'grep -q "parked and locked" "$T/dump.log"'; pkill -KILL -x criu) & dump; fault; wait_for 'pool_counts | grep -qx held=0'; answers alive`,
    wanted: { dump: '137', alive: '3' },
  },
  {
    name: 'CRIU is killed in a checkpoint: the pool gives memory back',
    script: `${start}; fault checkpoint=hang:1500; (driver_busy; pkill -KILL -x criu) & dump; fault; wait_for 'pool_counts | grep -qx held=0'; answers alive`,
    wanted: { dump: '137', alive: '3' },
  },
  {
    name: 'the keeper is killed in a checkpoint: the dump fails, memory comes back from the images',
    script: `${spawning}; ${start}; fault checkpoint=hang:1500; (wait_for '[ "$(ls "$T"/img/cudapool-*.img | wc -l)" = 3 ]'; kill -KILL $POOL) & dump; fault; wait_for 'pool_counts | grep -qx held=0'; answers alive; ${fresh}; NAME=again dump; left gone; restore; answers restored; ${end}`,
    wanted: { dump: '1', alive: '3', again: '0', gone: '0', restore: '0', restored: '3' },
    also: (t, o) => t.match(o.log('dump'), 'the pool that parks GPU memory was lost'),
  },
  {
    name: 'the keeper is killed while processes are restored: another loads the images',
    script: `${spawning}; ${dumped}; fault restore=hang:1500; (driver_busy; kill -KILL $POOL) & restore; fault; answers alive; ${end}`,
    wanted: well,
    also: (t, o) => t.strictSame(paths(o), ['loaded', 'loaded', 'loaded']),
  },
  {
    name: 'the worker is killed while processes are restored',
    script: `${dumped}; fault restore=hang:1500; (driver_busy; pkill -KILL -P $POOL) & restore; fault; answers alive`,
    wanted: well,
  },
  {
    name: 'an image is missing: CRIU fails within a second, nothing is left, with the image the next restore works',
    script: `${dumped}; stop_pool; start_cudapoold; one=$(ls "$T"/img/cudapool-*.img | head -1); mv "$one" "$T/kept"; restore; left none; mv "$T/kept" "$one"; NAME=again restore; answers alive`,
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) => {
      t.match(o.log('restore'), /RESUME_DEVICES RESTORE of pid \d+ failed: .*image/);
      t.ok(...soon(o, 'restore'));
    },
  },
  {
    name: 'an image is altered: the same',
    script: `${dumped}; stop_pool; start_cudapoold; one=$(ls "$T"/img/cudapool-*.img | head -1); cp "$one" "$T/kept"; printf x | dd of="$one" bs=1 seek=100000 conv=notrunc 2>/dev/null; restore; left none; mv "$T/kept" "$one"; NAME=again restore; answers alive`,
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) => t.match(o.log('restore'), /RESUME_DEVICES (RESTORE|UNPARK) of pid \d+ failed: /),
  },
  {
    name: 'a CRIU with upstream’s plugin refuses the checkpoint',
    script: `${dumped}; CRIU_LIBS_DIR=$STOCK restore; left none; NAME=again restore; answers alive`,
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) => t.match(o.log('restore'), 'Missing required plugin: cudapool'),
  },
  ...(['lock', 'checkpoint'] as const).map(
    (action): Case => ({
      name: `parked before the dump by somebody else (${action}): refused, as no image would be in it; then given back`,
      script: `start_gpu_app 1; CUDAPOOL_IMAGE_DIR=$T/own start_cudapoold; pool_ready; ${
        action === 'lock' ? '"$DROPIN" --action lock' : '"$DROPIN" --toggle'
      } --pid $APP; dump; "$DROPIN" ${action === 'lock' ? '--action unlock' : '--toggle'} --pid $APP; answers alive; NAME=again dump; left gone; parked_images images; restore; answers restored`,
      wanted: { dump: '1', alive: '1', again: '0', gone: '0', images: '1', restore: '0', restored: '1' },
      also: (t, o) =>
        t.match(
          o.log('dump'),
          new RegExp(`was parked before this dump.*--${action === 'lock' ? 'action unlock' : 'toggle'} --pid \\d+`),
        ),
    }),
  ),
  {
    name: 'CUDAPOOL_PARK=0 in the pool: the driver carries everything, and the log says why',
    script: `start_gpu_app 3; CUDAPOOL_PARK=0 start_cudapoold; dump; left gone; parked_images images; restore; answers alive`,
    wanted: { ...well, images: '0' },
    also: (t, o) => t.equal(count(o.log('dump'), 'not parked, the driver carries it: parking is off in the pool'), 3),
  },
];

t.test('parked, with the software driver', async (t) => {
  if (!canRun(t)) return;
  const there = [built.cudapoold, built.shim, inRoot('softcuda', 'lib', 'libcuda.so.1')].every(existsSync);
  if (!skipUnless(t, there, 'pool, shim or software driver is not built: bin/cudapool setup')) return;
  runCases(t, cases, () => ({ env, tools: '/nonexistent' }));
});
