// SPDX-License-Identifier: MIT
// One checkpoint, restored more than once; the drop-in with upstream's plugin; and parking that is off.
import { dirname, join } from 'node:path';
import t from 'tap';
import { inspectContainer } from '../../harness/adapters/podman.ts';
import { built, until } from '../support/index.ts';
import { expectPaths, freeMemory, labFor, parksIn, verify } from './support.ts';

const SHAPE = { memoryMib: 8, pieces: 2 };

t.test('a checkpoint that is kept: moved, loaded and kept hot, copied', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ ...SHAPE, processes: 2, shim: true });
  await lab.checkpoint(workload);
  for (const path of ['hot-move', 'loaded', 'hot-copy', 'hot-copy']) {
    expectPaths(t, await lab.restore(workload), [path, path], path);
    await verify(t, workload, SHAPE, path);
    await workload.ask({ processes: 2, seed: 99 }); // nobody else's memory
    await workload.kill();
  }
  t.same(
    (await parksIn(lab)).map(({ tier }) => tier),
    ['hot', 'hot'],
  );
});

t.test('two containers from one archive', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ ...SHAPE, image: true, shim: true });
  const archive = join(lab.dir, 'archive.tar');
  await lab.checkpoint(workload, { podmanOptions: [`--export=${archive}`] });
  await lab.remove(workload);
  await lab.startPool(); // all it knows is what is in the archive
  const free = await freeMemory(lab);
  const pids: number[] = [];
  const names = [workload.name, `${workload.name}-2`];
  for (const name of names) {
    const restored = await lab.restore({ ...workload, name }, { archive, podmanOptions: [] });
    expectPaths(t, restored, ['loaded'], name);
    await verify(t, workload, SHAPE, name);
    await workload.ask({ seed: 50 + pids.length });
    pids.push((await inspectContainer(lab.podman, name)).pid);
    process.kill(pids.at(-1) ?? 0, 'SIGSTOP'); // both answer in the same place
  }
  for (const [i, pid] of pids.entries()) {
    process.kill(pid, 'SIGCONT');
    await verify(t, workload, { ...SHAPE, seed: 50 + i }, `container ${i}: its own copy`);
    process.kill(pid, 'SIGSTOP');
  }
  for (const name of names) await lab.remove({ ...workload, name });
  t.same(await freeMemory(lab), free, 'and nothing is left of them');
});

t.test('the drop-in with upstream’s plugin', async (t) => {
  const lab = await labFor(t, { pathDirs: [dirname(built.dropin)] });
  const images = join(lab.dir, 'images');
  await lab.startPool([], { CUDAPOOL_IMAGE_DIR: images });
  const workload = await lab.start({ ...SHAPE, busy: true, processes: 2, shim: true });
  for (let i = 1; i <= 3; i++) {
    await lab.checkpoint(workload, { plugin: 'stock' });
    // An image stays until a person removes it: the pool cannot know whether CRIU's images are still there.
    const parks = await parksIn(lab);
    t.equal(parks.length, 2 * i);
    t.ok(
      parks.every(({ bytes, path }) => bytes === 8 * 2 ** 20 && dirname(path) === images),
      `${i}: parked into the pool's own directory`,
    );
    await lab.restore(workload, { plugin: 'stock' });
    await verify(t, workload, SHAPE, `${i}`);
    await until('nothing is hot any more', async () => (await parksIn(lab)).every(({ tier }) => tier !== 'hot'));
  }
});

t.test('parking is off', async (t) => {
  const lab = await labFor(t);
  for (const off of ['shim', 'pool'] as const) {
    await lab.startPool([], off === 'pool' ? { CUDAPOOL_PARK: '0' } : {});
    const workload = await lab.start({ ...SHAPE, shim: off === 'shim' ? { CUDAPOOL_PARK: '0' } : true });
    const dumped = await lab.checkpoint(workload);
    t.match(dumped.memory, [{ path: 'stock', why: /off/, parked_bytes: 0 }], off);
    t.same(await parksIn(lab), [], off);
    await lab.restore(workload);
    await verify(t, workload, SHAPE, off);
  }
});
