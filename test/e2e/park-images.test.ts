// SPDX-License-Identifier: MIT
// Images of parked GPU memory that are not what they should be, or that there is no room for.
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { imagesIn } from '../../harness/container/images.ts';
import type { Lab, Workload } from '../../harness/container/lab.ts';
import { tempDir } from '../support/index.ts';
import { expectPaths, freeMemory, imageDir, labFor, refused, verify } from './support.ts';

const SHAPE = { memoryMib: 8, pieces: 2 };

const copy = (from: string, to: string) => (): void => copyFileSync(from, to);

/** The first image of a container's checkpoint. */
async function imageOf(lab: Lab, workload: Workload): Promise<string> {
  const file = imagesIn(await imageDir(lab, workload))[0]?.file;
  if (file === undefined) throw new Error('there is no image');
  return file;
}

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
  const tablesAt = Number(readFileSync(good).readBigUInt64LE(96)); // pool/image.h: tables_at
  const [verifyIt, bringIt] = [/cudapool image verify FILE/, /bring back the cudapool-\*\.img/];
  const cases: Record<string, [spoil: () => void, words: RegExp, fix?: RegExp]> = {
    truncated: [() => truncateSync(file, 5 * 2 ** 20), /cudapool-.*\.img/],
    empty: [() => truncateSync(file, 0), /cudapool-.*\.img/],
    'of a newer version': [altered(8, [99]), /version/],
    'with an altered header': [altered(100, [1, 2, 3]), /checksum|altered/],
    'with altered tables': [altered(tablesAt + 8, [1, 2, 3]), /checksum|altered/],
    'with an altered content': [altered(2 ** 20, [1, 2, 3]), /checksum|altered/],
    'that is missing': [() => rmSync(file), /there is no cudapool-\*\.img/, bringIt],
    'of another container': [copy(await imageOf(lab, other), file), /cudapool-.*\.img/],
    'of an earlier dump, under its name': [copy(earlier, file), /cudapool-.*\.img/],
    'of an earlier dump, beside it': [
      () => {
        rmSync(file);
        copyFileSync(earlier, earlierName);
      },
      /is not in/,
      bringIt,
    ],
    'no file': [
      () => {
        rmSync(file);
        mkdirSync(file);
      },
      /cudapool-.*\.img/,
    ],
  };
  for (const [name, [spoil, words, fix = verifyIt]] of Object.entries(cases)) {
    await lab.startPool(); // which has nothing hot
    spoil();
    await refused(t, lab.restore(workload), words, name, fix);
    t.equal(await workload.pid(), 0, `${name}: nothing runs`);
    rmSync(earlierName, { force: true });
    rmSync(file, { recursive: true, force: true });
    copyFileSync(good, file);
  }
  expectPaths(t, await lab.restore(workload), ['loaded'], 'the good one');
  await verify(t, workload, SHAPE, 'the good one');
  await lab.checkpoint(workload);

  const machine = join(lab.env.SOFTCUDA_DIR ?? '', 'machine');
  const here = readFileSync(machine);
  await lab.pool()?.stop();
  writeFileSync(machine, 'another');
  await lab.startPool();
  await refused(t, lab.restore(workload), /this machine has no GPU/, 'another GPU', /nvidia-smi -L/);
  await lab.pool()?.stop();
  writeFileSync(machine, here);
  await lab.startPool();
  expectPaths(t, await lab.restore(workload), ['loaded'], 'the good one');
  await verify(t, workload, SHAPE, 'the good one');
});

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
  await refused(t, lab.checkpoint(workload), /No space left|full/, 'full', /df -h/);
  t.equal(await workload.pid(), pid, 'it runs');
  t.equal((await workload.ask()).answers[0]?.checksum, before, 'as it was');
  t.same(await freeMemory(lab), free);
  t.same(
    readdirSync(await imageDir(lab, workload)).filter((name) => /\.img(\.part)?$/.test(name) && /^cudapool/.test(name)),
    [],
  );
  await exec('mount', ['-o', 'remount,size=200m', storage], { timeoutMs: 10_000 });
  await lab.checkpoint(workload);
  await lab.startPool();
  t.match((await lab.restore(workload)).memory, [{ path: 'loaded' }]);
  t.equal((await workload.ask()).answers[0]?.checksum, before, 'and restores');
});
