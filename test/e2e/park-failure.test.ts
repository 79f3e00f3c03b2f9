// SPDX-License-Identifier: MIT
// Parked GPU memory when something is missing or fails: a clear error, nothing lost, and the next one works.
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { stopPool } from '../../harness/adapters/cudapoold.ts';
import { imagesIn } from '../../harness/container/images.ts';
import type { Lab, LabAction, Workload } from '../../harness/container/lab.ts';
import { recordsIn } from '../../harness/container/records.ts';
import { expectPaths, freeMemory, imageDir, labFor, parksIn, refused, verify } from './support.ts';

/** By then the pool has seen an application that has started (pool/store_watch.c), on a busy machine, too. */
const SEEN_MS = 3000;
const SHAPE = { memoryMib: 8, pieces: 2 };

async function restores(t: Test, lab: Lab, workload: Workload, path: string, options: LabAction = {}): Promise<void> {
  expectPaths(t, await lab.restore(workload, options), Array(workload.processes).fill(path), path);
  await verify(t, workload, SHAPE, path);
}

t.test('a dump that fails after parking, a dump that leaves it running, and one that finds it stopped', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ ...SHAPE, busy: true, processes: 2, shim: true });
  await verify(t, workload, SHAPE, 'at the start');
  const pid = await workload.pid();
  const free = await freeMemory(lab);
  const runsOn = async (message: string): Promise<void> => {
    t.equal(await workload.pid(), pid, `${message}: it runs`);
    await verify(t, workload, SHAPE, message);
    t.same(await freeMemory(lab), free, `${message}: the pool has nothing of it`);
  };

  for (const fault of ['lock=1', 'checkpoint=1']) {
    lab.faults(fault);
    await refused(t, lab.checkpoint(workload), /cuda_plugin: /, fault);
    lab.faults('');
    await runsOn(fault);
    t.same(imagesIn(await imageDir(lab, workload)), [], `${fault}: no image is left`);
  }

  await lab.checkpoint(workload, { podmanOptions: ['--keep', '--leave-running'] });
  await runsOn('left running');
  t.equal(imagesIn(await imageDir(lab, workload)).length, 2, 'left running: with images');

  process.kill(pid, 'SIGSTOP');
  await refused(t, lab.checkpoint(workload), /stopped|timed? ?out|did not answer/i, 'stopped');
  process.kill(pid, 'SIGCONT');
  await runsOn('stopped');

  await lab.checkpoint(workload);
  await restores(t, lab, workload, 'hot-move');
});

t.test(
  'a restore without a pool, with a shim that fails, and with a CRIU that does not know parked memory',
  async (t) => {
    const lab = await labFor(t);
    const pool = await lab.startPool();
    const workload = await lab.start({ ...SHAPE, shim: true });
    await lab.checkpoint(workload);
    await pool.stop();
    await refused(
      t,
      lab.restore(workload, { env: { CUDAPOOL_START: '0' } }),
      /no pool answers/,
      'no pool',
      /^cudapool pool start/,
    );
    t.equal(await workload.pid(), 0);
    await refused(
      t,
      lab.restore(workload, { plugin: 'stock', pool: false }),
      /cudapool/,
      'upstream’s plugin',
      /cudapool build/,
    );
    await restores(t, lab, workload, 'loaded');
    await lab.checkpoint(workload);
    await lab.restore(workload, { pool: false });
    await verify(t, workload, SHAPE, 'whatever CRIU_CUDA_CONTEXT_POOL says');
    t.match(recordsIn(await imageDir(lab, workload), 'restore'), [{ path: 'hot-move', tier: 'hot' }]);

    const limit = { CUDAPOOL_ACTION_LIMIT_S: '3' };
    await stopPool(lab.poolPlace()); // the one that the plugin has started
    await lab.startPool([], limit);
    await lab.checkpoint(workload);
    for (const [fault, words] of [
      ['cuMemMap=1', /mapped/],
      ['cuMemImportFromShareableHandle=2', /imported/],
      ['cuMemImportFromShareableHandle=hang', /within/],
    ] as const) {
      lab.faults(fault);
      await refused(t, lab.restore(workload, { env: limit }), words, fault);
      lab.faults('');
      t.equal(await workload.pid(), 0, `${fault}: nothing runs`);
      t.same(
        (await parksIn(lab)).map(({ tier }) => tier === 'hot'),
        [false],
        `${fault}: what was given away is never hot again`,
      );
      await restores(t, lab, workload, 'loaded', { env: { CUDAPOOL_HOT: 'move' } });
      await lab.checkpoint(workload);
    }
  },
);

t.test('not enough GPU memory', async (t) => {
  // One of them and what the driver needs for a context (STORE_MARGIN, 640 MiB) fit, both of them do not.
  const lab = await labFor(t, { env: { SOFTCUDA_MEMORY_MB: '1408' } });
  await lab.startPool();
  const big = { memoryMib: 704, filledMib: 2, shim: true } as const;
  const first = await lab.start(big);
  const held = async (workload: Workload): Promise<unknown[]> =>
    (await workload.ask({ timeoutMs: 30_000 })).answers.map(({ words, checksum }) => [words, checksum]);
  const before = await held(first);
  const hot = async (): Promise<boolean[]> => (await parksIn(lab)).map(({ tier }) => tier === 'hot');
  await lab.checkpoint(first);
  t.same(await hot(), [true]);

  const second = await lab.start({ ...big, memoryMib: 736, seed: 7, when: 'ask' });
  await sleep(SEEN_MS);
  const others = await held(second);
  t.same(await hot(), [false], 'an allocation gets what was hot');
  await refused(t, lab.restore(first), /not enough GPU memory/, 'it does not fit', /nvidia-smi/);
  t.equal(await first.pid(), 0);
  t.same(await held(second), others, 'the other one runs on');

  await lab.checkpoint(second);
  t.match((await lab.restore(first)).memory, [{ path: 'loaded' }], 'what is hot and unused makes room');
  t.same([await hot(), await held(first)], [[false, false], before]);
  await first.kill();
  t.match((await lab.restore(second)).memory, [{ path: 'loaded' }], 'and there is room once the other has ended');
  t.same(await held(second), others);
});
