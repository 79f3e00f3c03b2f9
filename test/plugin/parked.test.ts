// SPDX-License-Identifier: MIT
// Parked GPU memory in real CRIU, with a scripted pool: what the plugin asks for, refuses, and does when the pool is lost.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { tempDir } from '../support/index.ts';
import { type Case, count, type Outcome, patchedTree, runCasesWithEach, soon } from './support.ts';

const pool = { CRIU_CUDA_CONTEXT_POOL: '1' };
const off = 'CRIU_CUDA_CONTEXT_POOL=0';
/** A pool of the same kind is to be had again: start_pool's is not the only one. */
const again =
  'export CUDAPOOL_START=1 CUDAPOOL_DAEMON="$T/again"; printf \'#!/bin/sh\\nexec "$FAKE/fakepool" --park "$@"\\n\' >"$T/again"; chmod +x "$T/again"';
const parked = 'start_app 3 1; start_pool --park; dump; left gone; parked_images images';
const well = { dump: '0', gone: '0', images: '3', restore: '0', alive: '4' };

interface ParkedCase extends Case {
  /** Folder of plugins that the second half sees as $OTHER: 'none', or upstream's. */
  readonly other?: 'none' | 'stock';
}

const asked = (outcome: Outcome, op: string): number =>
  outcome.pool.filter((line) => line.startsWith(`${op} `) && line.includes(' limit ')).length;

const cases: ParkedCase[] = [
  {
    name: 'a tree: parked, images, mapped back, nothing executed, no thread changed',
    script: `start_app 3 1; start_pool --park; masks before; dump; left gone; parked_images images; restore; answers alive; masks after`,
    wanted: well,
    both: true,
    also: (t, o) => {
      t.strictSame(o.executed, []);
      t.equal(o.values.after, o.values.before, 'every thread blocks the signals that it did');
      t.strictSame(
        o.pool.filter((line) => line.startsWith('images')),
        ['images dump sync 0 hot 0', 'images restore sync 0 hot 0'],
      );
      t.equal(asked(o, 'unpark'), 3);
      t.equal(count(o.log('dump'), /pid \d+: 7 MiB of GPU memory parked, 2 MiB left to the driver; /), 3);
      t.equal(
        count(
          o.log('dump'),
          /pid \d+: checkpointed in \d+ ms[\s\S]*?pid \d+: its image is complete, after \d+ ms more/,
        ),
        3,
      );
      t.equal(asked(o, 'saved'), 3);
      t.match(o.log('restore'), '3 image(s) of parked GPU memory');
      t.equal(count(o.log('restore'), /pid \d+: loaded, 7 MiB of GPU memory mapped back, .*; restore \d+ ms/), 3);
    },
  },
  {
    name: 'CUDAPOOL_SYNC and CUDAPOOL_HOT reach the pool',
    script: `${parked}; restore; answers alive`,
    options: { env: { CUDAPOOL_SYNC: '1', CUDAPOOL_HOT: 'move' } },
    wanted: well,
    also: (t, o) => {
      t.strictSame(
        o.pool.filter((line) => line.startsWith('images')),
        ['images dump sync 1 hot 1', 'images restore sync 0 hot 1'],
      );
      const log = o.log('dump');
      const last = log.lastIndexOf('Dumping pages'); // CRIU's own come after CHECKPOINT
      t.match(log.slice(last), 'file system of the images synced');
      t.notMatch(o.log('restore'), 'synced');
    },
  },
  {
    name: 'a CUDAPOOL_HOT that is none: said, and as upstream',
    script: 'start_app 1 0; start_pool --park; dump; left gone; parked_images images; restore; answers alive',
    options: { env: { CUDAPOOL_HOT: 'warm' } },
    wanted: { ...well, images: '0', alive: '1' },
    also: (t, o) => t.match(o.log('dump'), "CUDAPOOL_HOT is 'warm' (environment), allowed is auto, move, copy or off"),
  },
  {
    name: 'not parked: the reason is said once for each process, and any CRIU restores it',
    script: `start_app 2 0; start_pool; dump; left gone; parked_images images; stop_pool; ${off} restore; answers alive`,
    wanted: { ...well, images: '0', alive: '2' },
    also: (t, o) => t.equal(count(o.log('dump'), 'not parked, the driver carries it: the test wants it so'), 2),
  },
  {
    name: 'a directory that the pool cannot use: not parked, said',
    script: 'start_app 1 0; start_pool --park --images-error; dump; left gone; restore; answers alive',
    wanted: { dump: '0', gone: '0', restore: '0', alive: '1' },
    also: (t, o) => t.match(o.log('dump'), 'GPU memory will not be parked: the test wants no images'),
  },
  {
    name: 'the pool is off at the restore: it is needed all the same',
    script: `${parked}; ${off} restore; answers alive`,
    wanted: well,
    both: true,
    also: (t, o) => t.match(o.log('restore'), 'the pool is used whatever CRIU_CUDA_CONTEXT_POOL says'),
  },
  {
    name: 'one after another',
    script: `${parked}; restore; answers alive`,
    options: { env: { CRIU_CUDA_PARALLEL_RESTORE: '0' } },
    wanted: well,
  },
  {
    name: 'a pool that is still warming up: the directory is told anew where the connection is',
    script: `${parked}; stop_pool; start_pool --park --warm-ms 500; restore; answers alive`,
    wanted: well,
    also: (t, o) => t.equal(o.pool.filter((line) => line.startsWith('images restore')).length, 2),
  },
  {
    name: 'without a pool: refused before anything is restored, and the fix is named',
    script: `${parked}; stop_pool; restore; left none; start_pool --park; NAME=again restore; answers alive`,
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) =>
      t.match(o.log('restore'), /which only a pool can map back: .*start one with 'systemctl start cudapoold'/),
  },
  {
    name: 'without a pool: one is started',
    script: `${parked}; stop_pool; ${again}; ${off} restore; answers alive`,
    wanted: well,
    also: (t, o) => t.match(o.log('restore'), 'GPU context pool: started a pool'),
  },
  {
    name: 'images that the pool refuses: so is the restore',
    script: `${parked}; stop_pool; start_pool --park --images-error; restore; left none`,
    wanted: { dump: '0', restore: '1', none: '0' },
    also: (t, o) => t.match(o.log('restore'), 'which only a pool can map back: the test wants no images'),
  },
  {
    name: 'images that are missing: refused',
    script: `${parked}; rm "$T"/img/cudapool-*.img; restore; left none`,
    wanted: { dump: '0', restore: '1', none: '0' },
    also: (t, o) => t.match(o.log('restore'), 'there is no cudapool-*.img among its images'),
  },
  {
    name: 'images of an earlier dump in the same directory are removed',
    script: `start_app 2 0; start_pool --park; touch "$T/img/cudapool-old.img"; dump; left gone; parked_images images; restore; answers alive`,
    wanted: { ...well, images: '2', alive: '2' },
  },
  {
    name: 'images of an earlier dump that are left are none of this checkpoint',
    script: `start_app 2 0; touch "$T/img/cudapool-old.img"; ${off} dump; left gone; start_pool; ${off} restore; answers alive; restore`,
    wanted: { dump: '0', gone: '0', alive: '2' },
    also: (t, o) => t.notOk(o.pool.some((line) => line.startsWith('images'))),
  },
  {
    name: 'a CRIU without plugins refuses the checkpoint',
    script: `${parked}; CRIU_LIBS_DIR=$OTHER restore; left none; NAME=again restore; answers alive`,
    other: 'none',
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) => t.match(o.log('restore'), 'Missing required plugin: cudapool'),
  },
  {
    name: 'a CRIU with upstream’s plugin refuses the checkpoint',
    script: `${parked}; CRIU_LIBS_DIR=$OTHER restore; left none; NAME=again restore; answers alive`,
    other: 'stock',
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) => t.match(o.log('restore'), 'Missing required plugin: cudapool'),
  },
  {
    name: 'leave-running: memory comes back, the images stay',
    script: `start_app 3 0; start_pool --park; masks before; dump -R; answers running; masks after; parked_images images; end_app; left gone; as_dumped; restore; answers alive`,
    wanted: { dump: '0', running: '3', images: '3', gone: '0', restore: '0', alive: '3' },
    both: true,
    also: (t, o) => {
      t.equal(o.values.after, o.values.before);
      const kept = o.pool.indexOf('release 3');
      const first = o.pool.findIndex((line) => /^unpark \d+ limit/.test(line));
      t.ok(kept >= 0 && kept < first, 'the images are kept before memory is given back');
      t.equal(count(o.log('dump'), /pid \d+: returned, 7 MiB of GPU memory mapped back/), 3);
    },
  },
  {
    name: 'a park that fails: the dump fails, the application runs on, nobody locks it by other means',
    script: 'start_app 3 0; start_pool --park --fault lock:own@3; dump; answers alive',
    wanted: { dump: '1', alive: '3' },
    both: true,
    also: (t, o) => {
      t.strictSame(o.executed, []);
      t.match(o.log('dump'), /PAUSE_DEVICES failed with the test wants lock of \d+ to fail/);
    },
  },
  {
    name: 'a checkpoint that fails after parking: memory comes back, the application runs on',
    script: 'start_app 3 0; start_pool --park --fault checkpoint:refuse@2; dump; answers alive; states after',
    wanted: { dump: '1', alive: '3', after: '0x3' },
    both: true,
    also: (t, o) => {
      t.equal(asked(o, 'unpark'), 3);
      t.notOk(o.pool.includes('release 3'));
    },
  },
  {
    name: 'an image that cannot be completed: the dump fails, memory comes back, the application runs on',
    script: 'start_app 3 0; start_pool --park --fault saved:own@2; dump; answers alive; states after',
    wanted: { dump: '1', alive: '3', after: '0x3' },
    both: true,
    also: (t, o) => {
      t.strictSame(o.executed, []);
      t.match(o.log('dump'), /GPU memory of pid \d+ is not saved: the test wants saved of \d+ to fail/);
      t.equal(asked(o, 'unpark'), 3);
      t.notOk(o.pool.includes('release 3'));
    },
  },
  {
    name: 'a pool that does not know of what is parked: the dump fails',
    script: 'start_app 1 0; start_pool --park --forgets; dump; answers alive',
    wanted: { dump: '1', alive: '1' },
    also: (t, o) => t.match(o.log('dump'), 'is not saved: the pool does not have its GPU memory'),
  },
  {
    name: 'UNPARK fails for one of a tree: CRIU fails within a second, nothing is left, the next restore works',
    script: `${parked}; stop_pool; start_pool --park --fault unpark:refuse@2; restore; left none; as_dumped; NAME=again restore; answers alive`,
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    both: true,
    also: (t, o) => {
      t.match(o.log('restore'), /RESUME_DEVICES UNPARK of pid \d+ failed: the test wants unpark of \d+ to fail/);
      t.ok(...soon(o, 'restore'));
    },
  },
  {
    name: 'the same in a container’s namespaces, twenty times',
    script:
      'start_contained_app 3 1; start_pool --park; dump; stop_pool; start_pool --park --fault unpark:refuse@each; for i in $(seq 20); do as_dumped; NAME=r$i restore; done; left gone; stop_pool; start_pool --park; as_dumped; restore; answers alive',
    wanted: { dump: '0', gone: '0', restore: '0', alive: '4', r1: '1', r20: '1' },
    also: (t, o) => t.ok(...soon(o, ...Array.from({ length: 20 }, (_, i) => `r${i + 1}`))),
  },
  {
    name: 'memory that cannot be had is final: cuda-checkpoint does not try',
    script: `${parked}; stop_pool; start_pool --park --fault restore:own@2; restore; left none; as_dumped; NAME=again restore; answers alive`,
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) => t.strictSame(o.executed, []),
  },
  {
    name: 'a thread of another process is not let run',
    script: `${parked}; stop_pool; start_pool --park --wrong-thread; restore; left none`,
    wanted: { dump: '0', restore: '1', none: '0' },
    also: (t, o) => t.match(o.log('restore'), /The pool names thread 1 of pid \d+ for mapping GPU memory back/),
  },
  {
    name: 'a parked process that the driver does not know: the restore fails',
    script: `${parked}; stop_pool; start_pool --park --fault tid:refuse@1; restore; left none; as_dumped; NAME=again restore; answers alive`,
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) => t.match(o.log('restore'), /The GPU memory of pid \d+ is parked, but the CUDA driver does not know/),
  },
  ...(['restore', 'unlock', 'unpark'] as const).flatMap((op) =>
    (['die', 'die-after'] as const).map(
      (fault): ParkedCase => ({
        name: `the pool ends ${fault === 'die' ? 'before' : 'after'} a ${op} in a restore: another goes on`,
        script: `${parked}; stop_pool; start_pool --park --fault ${op}:${fault}@2; ${again}; restore; answers alive; states after`,
        wanted: { ...well, after: '0x3' },
        ...(fault === 'die' && { both: true }),
        also: (t, o) => {
          t.strictSame(o.executed, []);
          t.equal(count(o.log('restore'), 'GPU context pool lost'), 1);
          t.equal(o.pool.filter((line) => line.startsWith('images restore')).length, 2);
        },
      }),
    ),
  ),
  {
    name: 'the pool ends in a restore and there is no other: everything is killed, and the next one works',
    script: `${parked}; stop_pool; start_pool --park --fault unpark:die@2; restore; left none; start_pool --park; as_dumped; NAME=again restore; answers alive`,
    wanted: { ...well, restore: '1', none: '0', again: '0' },
    also: (t, o) => {
      t.strictSame(o.executed, []);
      t.match(o.log('restore'), 'No GPU context pool is to be had again');
      t.ok(...soon(o, 'restore'));
    },
  },
  ...(
    ['lock:die-after@1', 'lock:die-after@2', 'checkpoint:die@2', 'checkpoint:die-after@2', 'saved:die@2'] as const
  ).map(
    (fault): ParkedCase => ({
      name: `the pool ends in a dump (${fault}): the dump fails, another pool gives everything back that it can`,
      script: `start_app 3 0; start_pool --park --fault ${fault}; ${again}; dump; answers alive`,
      // What a lost LOCK took is the pool's to give back, from its journal: a scripted one has none.
      wanted: { dump: '1', alive: fault.startsWith('lock') ? '2' : '3' },
      also: (t, o) => {
        t.strictSame(o.executed, []);
        t.match(o.log('dump'), 'the pool that parks GPU memory was lost');
      },
    }),
  ),
];

runCasesWithEach(t, cases, (t, { options, other }, version) => {
  const none = join(tempDir(t), 'none');
  mkdirSync(none);
  return {
    ...options,
    env: { ...pool, ...options?.env, OTHER: other === 'stock' ? join(patchedTree(version), 'stock') : none },
  };
});
