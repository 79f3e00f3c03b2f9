// SPDX-License-Identifier: MIT
// GPU memory that is parked at the checkpoint and comes back at the restore, by podman, CRIU and the software driver.
import t from 'tap';
import { evict, prefetch } from '../../harness/adapters/cudapoold.ts';
import { inspectContainer } from '../../harness/adapters/podman.ts';
import { checkpointDir, imagesIn } from '../../harness/container/images.ts';
import { CRIU_VERSIONS } from '../../harness/paths.ts';
import { builtCriu, skipUnless } from '../support/index.ts';
import { expectPaths, freeMemory, labFor, parksIn, verify } from './support.ts';

const MIB = 2 ** 20;

t.test('ten cycles, each way back in turn, work in flight and other allocations each time', async (t) => {
  const lab = await labFor(t, { env: { SOFTCUDA_DEVICES: '2' } });
  await lab.startPool();
  const empty = await freeMemory(lab);
  const shape = { memoryMib: 16, pieces: 4, filledMib: 12, devices: 2, processes: 2 };
  const workload = await lab.start({ ...shape, busy: true, replace: true, shim: true });
  const before = (await verify(t, workload, shape, 'at the start')).answers;
  const free = await freeMemory(lab);
  const ways = ['hot-move', 'hot-copy', 'staged', 'cold', 'prefetched'] as const;
  for (let i = 0; i < 10; i++) {
    const way = ways[i % ways.length] ?? 'hot-move';
    const name = `${i}, ${way}`;
    const dumped = await lab.checkpoint(workload);
    expectPaths(t, dumped, Array(2).fill('parked'), name);
    t.same(
      dumped.memory.map(({ parked_bytes }) => parked_bytes),
      [16 * MIB, 16 * MIB],
      `${name}: all of it`,
    );
    t.equal(await workload.pid(), 0);
    const images = imagesIn(checkpointDir(await inspectContainer(lab.podman, workload.name)));
    t.ok(
      images.length === 2 && images.every(({ bytes }) => bytes >= 12 * MIB && bytes < 13 * MIB),
      `${name}: images without what is zero: ${images.map(({ bytes }) => bytes)}`,
    );
    if (way === 'staged') await lab.startPool();
    if (way === 'cold' || way === 'prefetched') await evict(lab.poolPlace(), { tier: 'cold' });
    if (way === 'prefetched') {
      const dir = checkpointDir(await inspectContainer(lab.podman, workload.name));
      t.match(await prefetch(lab.poolPlace(), { dir, tier: 'hot' }), { count: 2, bytes: 32 * MIB });
    }
    const hot = way === 'hot-copy' ? 'copy' : 'move';
    const restored = await lab.restore(workload, { env: { CUDAPOOL_HOT: hot } });
    const path = { staged: 'loaded', cold: 'loaded', prefetched: 'hot-move' }[way as string] ?? way;
    expectPaths(t, restored, Array(2).fill(path), name);
    const { answers } = await verify(t, workload, shape, name);
    t.same(
      answers.map(({ context }) => context),
      before.map(({ context }) => context),
    );
    if (way === 'hot-copy') {
      t.same(
        (await parksIn(lab)).map(({ tier }) => tier),
        ['hot', 'hot'],
        `${name}: the masters stay`,
      );
      await evict(lab.poolPlace(), {});
    }
    t.same(await freeMemory(lab), free, `${name}: the pool has kept nothing`);
  }
  await workload.kill();
  t.same(await freeMemory(lab), empty, 'what it had is free when it has ended');
});

for (const kind of ['map', 'ordered', 'managed'] as const) {
  t.test(`memory of the kind '${kind}'`, async (t) => {
    const lab = await labFor(t);
    await lab.startPool();
    const shape = { memoryMib: 8, pieces: 2 };
    const workload = await lab.start({ ...shape, kind, busy: true, replace: true, shim: true });
    await verify(t, workload, shape, 'at the start');
    const free = await freeMemory(lab);
    for (const way of ['hot-move', 'loaded']) {
      const dumped = await lab.checkpoint(workload);
      const [record] = dumped.memory;
      const parked = record?.parked_bytes ?? 0;
      const left = record?.left_bytes.managed ?? 0;
      t.same([parked >= 8 * MIB, left >= 8 * MIB], [kind !== 'managed', kind === 'managed'], JSON.stringify(record));
      if (way === 'loaded') await lab.startPool();
      expectPaths(t, await lab.restore(workload), [way], way);
      await verify(t, workload, shape, way);
    }
    t.same(await freeMemory(lab), free, 'nothing is kept');
  });
}

t.test('copies with another device current', async (t) => {
  const lab = await labFor(t, { env: { SOFTCUDA_DEVICES: '2' } });
  await lab.startPool();
  const shape = { memoryMib: 16, pieces: 4, devices: 2 };
  const workload = await lab.start({ ...shape, by: 'copy', replace: true, shim: true });
  await verify(t, workload, shape, 'at the start');
  for (const way of ['hot-move', 'stock', 'hot-move']) {
    const options = way === 'stock' ? { env: { CRIU_CUDA_CONTEXT_POOL: '0' } } : {};
    const dumped = await lab.checkpoint(workload, options);
    const restored = await lab.restore(workload, options);
    if (way === 'stock') t.same([dumped.path, restored.path], ['stock', 'stock'], 'by the driver alone');
    else expectPaths(t, restored, [way], way);
    await verify(t, workload, shape, way);
  }
});

t.test('what came back from the pool can be dumped and restored without it', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const shape = { memoryMib: 8, pieces: 2 };
  const workload = await lab.start({ ...shape, busy: true, shim: true });
  await lab.checkpoint(workload);
  expectPaths(t, await lab.restore(workload), ['hot-move'], 'with the pool');
  const off = { env: { CRIU_CUDA_CONTEXT_POOL: '0' } };
  t.equal((await lab.checkpoint(workload, off)).path, 'stock', 'dumped without');
  t.equal((await lab.restore(workload, off)).path, 'stock', 'restored without');
  await verify(t, workload, shape, 'nothing is lost');
});

for (const version of CRIU_VERSIONS.slice(1)) {
  t.test(`CRIU ${version}`, async (t) => {
    const { tree, ready } = builtCriu(version);
    if (!skipUnless(t, ready, `${tree} is not built: bin/cudapool setup --for test`)) return;
    const lab = await labFor(t, { criu: tree });
    await lab.startPool();
    const shape = { memoryMib: 8, pieces: 2, processes: 2 };
    const workload = await lab.start({ ...shape, busy: true, replace: true, shim: true });
    const free = await freeMemory(lab);
    for (const way of ['hot-move', 'loaded']) {
      const dumped = await lab.checkpoint(workload);
      expectPaths(t, dumped, ['parked', 'parked'], way);
      t.equal(dumped.criu.version, version);
      if (way === 'loaded') await lab.startPool();
      const restored = await lab.restore(workload);
      expectPaths(t, restored, [way, way], way);
      t.equal(restored.criu.version, version);
      await verify(t, workload, shape, way);
    }
    t.same(await freeMemory(lab), free, 'nothing is kept');
  });
}
