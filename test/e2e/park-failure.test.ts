// SPDX-License-Identifier: MIT
// Parked GPU memory when something is missing, full, or fails: a clear error, nothing lost, and the next one works.
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { inspectContainer } from '../../harness/adapters/podman.ts';
import { checkpointDir, imagesIn } from '../../harness/container/images.ts';
import type { Lab, LabAction, Workload } from '../../harness/container/lab.ts';
import { recordsIn } from '../../harness/container/records.ts';
import type { CudapoolError } from '../../harness/errors.ts';
import { tempDir } from '../support/index.ts';
import { expectPaths, freeMemory, labFor, parksIn, verify } from './support.ts';

const SHAPE = { memoryMib: 8, pieces: 2 };

/** A checkpoint or restore that must fail, with words like these for people. */
async function refused(t: Test, action: Promise<unknown>, words: RegExp, message: string): Promise<void> {
  const failed = await action.then(
    () => undefined,
    (error: CudapoolError) => error,
  );
  t.match(failed?.code, /^ERR_CUDAPOOL_(CHECKPOINT|RESTORE)$/, `${message}: it fails`);
  t.match([failed?.message, ...(failed?.lines ?? [])].join('\n'), words, `${message}: and says why`);
}

const imageDir = async (lab: Lab, { name }: Workload): Promise<string> =>
  checkpointDir(await inspectContainer(lab.podman, name));

/** The first image of a container's checkpoint. */
async function imageOf(lab: Lab, workload: Workload): Promise<string> {
  const file = imagesIn(await imageDir(lab, workload))[0]?.file;
  if (file === undefined) throw new Error('there is no image');
  return file;
}

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

t.test('a restore without a pool, with a shim that fails, and with a CRIU that does not know parked memory', async (t) => {
  const lab = await labFor(t);
  const pool = await lab.startPool();
  const workload = await lab.start({ ...SHAPE, shim: true });
  await lab.checkpoint(workload);
  await pool.stop();
  await refused(t, lab.restore(workload, { env: { CUDAPOOL_START: '0' } }), /pool/, 'no pool may be started');
  t.equal(await workload.pid(), 0);
  await refused(t, lab.restore(workload, { plugin: 'stock', pool: false }), /cudapool/, 'upstream’s plugin');
  await restores(t, lab, workload, 'loaded');
  await lab.checkpoint(workload);
  await lab.restore(workload, { pool: false });
  await verify(t, workload, SHAPE, 'whatever CRIU_CUDA_CONTEXT_POOL says');
  t.match(recordsIn(await imageDir(lab, workload), 'restore'), [{ path: 'hot-move', tier: 'hot' }]);

  const limit = { CUDAPOOL_ACTION_LIMIT_S: '3' };
  await lab.startPool([], limit);
  await lab.checkpoint(workload);
  for (const [fault, words] of [
    ['cuMemMap=1', /mapped/],
    ['cuMemImportFromShareableHandle=2', /mapped/],
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
});

t.test('not enough GPU memory', async (t) => {
  const lab = await labFor(t, { env: { SOFTCUDA_MEMORY_MB: '256' } });
  await lab.startPool();
  const big = { memoryMib: 96, filledMib: 2, shim: true } as const;
  const first = await lab.start(big);
  const held = async (workload: Workload): Promise<unknown[]> =>
    (await workload.ask({ timeoutMs: 30_000 })).answers.map(({ words, checksum }) => [words, checksum]);
  const before = await held(first);
  const hot = async (): Promise<boolean[]> => (await parksIn(lab)).map(({ tier }) => tier === 'hot');
  await lab.checkpoint(first);
  t.same(await hot(), [true]);

  const second = await lab.start({ ...big, memoryMib: 192, seed: 7 });
  t.same(await hot(), [false], 'an allocation gets what was hot');
  const others = await held(second);
  await refused(t, lab.restore(first), /not enough GPU memory/, 'it does not fit');
  t.equal(await first.pid(), 0);
  t.same(await held(second), others, 'the other one runs on');

  await lab.checkpoint(second);
  t.match((await lab.restore(first)).memory, [{ path: 'loaded' }], 'what is hot and unused makes room');
  t.same([await hot(), await held(first)], [[false, false], before]);
  await first.kill();
  t.match((await lab.restore(second)).memory, [{ path: 'loaded' }], 'and there is room once the other has ended');
  t.same(await held(second), others);
});

t.test('images that are not what they should be', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ ...SHAPE, shim: true });
  const other = await lab.start({ ...SHAPE, seed: 5, shim: true });
  await lab.checkpoint(other);
  await lab.checkpoint(workload, { podmanOptions: ['--keep', '--leave-running'] });
  const earlier = join(lab.dir, 'earlier');
  copyFileSync(await imageOf(lab, workload), earlier);
  const earlierName = await imageOf(lab, workload);
  await lab.checkpoint(workload);
  const file = await imageOf(lab, workload);
  t.not(file, earlierName, 'each dump has its own');
  const good = join(lab.dir, 'good');
  copyFileSync(file, good);
  const altered = (at: number, bytes: readonly number[]) => (): void => {
    const content = readFileSync(good);
    content.set(bytes, at);
    writeFileSync(file, content);
  };
  const cases: Record<string, [() => void, RegExp]> = {
    truncated: [() => truncateSync(file, 5 * 2 ** 20), /cudapool-.*\.img/],
    empty: [() => truncateSync(file, 0), /cudapool-.*\.img/],
    'of a newer version': [altered(8, [99]), /version/],
    'with an altered header': [altered(100, [1, 2, 3]), /checksum|altered/],
    'with an altered content': [altered(2 ** 20, [1, 2, 3]), /checksum|altered/],
    'of another container': [copy(await imageOf(lab, other), file), /cudapool-.*\.img/],
    'of an earlier dump, under its name': [copy(earlier, file), /cudapool-.*\.img/],
    'of an earlier dump, beside it': [
      () => {
        rmSync(file);
        copyFileSync(earlier, earlierName);
      },
      /image/,
    ],
    'no file': [
      () => {
        rmSync(file);
        mkdirSync(file);
      },
      /cudapool-.*\.img/,
    ],
  };
  for (const [name, [spoil, words]] of Object.entries(cases)) {
    await lab.startPool(); // which has nothing hot
    spoil();
    await refused(t, lab.restore(workload), words, name);
    t.equal(await workload.pid(), 0, `${name}: nothing runs`);
    rmSync(earlierName, { force: true });
    rmSync(file, { recursive: true, force: true });
    copyFileSync(good, file);
  }
  await restores(t, lab, workload, 'loaded');
  await lab.checkpoint(workload);

  const machine = join(lab.env.SOFTCUDA_DIR ?? '', 'machine');
  await lab.pool()?.stop();
  writeFileSync(machine, 'another');
  await lab.startPool();
  await refused(t, lab.restore(workload), /GPU/, 'another GPU');
  await lab.pool()?.stop();
  rmSync(machine);
  await lab.startPool();
  await restores(t, lab, workload, 'loaded');
});
const copy = (from: string, to: string) => (): void => copyFileSync(from, to);

t.test('a file system that fills up', async (t) => {
  const storage = tempDir(t);
  await exec('mount', ['-t', 'tmpfs', '-o', 'size=40m', 'cudapool-test', storage], { timeoutMs: 10_000 });
  t.teardown(() => exec('umount', ['--lazy', storage], { timeoutMs: 10_000 }));
  const lab = await labFor(t, { storage });
  await lab.startPool();
  const shape = { memoryMib: 48 };
  const workload = await lab.start({ ...shape, shim: true });
  const pid = await workload.pid();
  const before = (await workload.ask()).answers[0]?.checksum;
  const free = await freeMemory(lab);
  await refused(t, lab.checkpoint(workload), /No space left|full/, 'full');
  t.equal(await workload.pid(), pid, 'it runs');
  t.equal((await workload.ask()).answers[0]?.checksum, before, 'as it was');
  t.same(await freeMemory(lab), free);
  t.same(readdirSync(await imageDir(lab, workload)).filter((name) => /\.img(\.part)?$/.test(name) && /^cudapool/.test(name)), []);
  await exec('mount', ['-o', 'remount,size=200m', storage], { timeoutMs: 10_000 });
  await lab.checkpoint(workload);
  await lab.startPool();
  t.match((await lab.restore(workload)).memory, [{ path: 'loaded' }]);
  t.equal((await workload.ask()).answers[0]?.checksum, before, 'and restores');
});
