// SPDX-License-Identifier: MIT
// A checkpoint in an OCI image (podman container checkpoint --create-image): parked GPU memory travels in it, and each
// container that is restored from it has its own.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { inspectContainer, podman } from '../../harness/adapters/podman.ts';
import { imagesIn } from '../../harness/container/images.ts';
import type { LabAction } from '../../harness/container/lab.ts';
import { expectPaths, imageDir, labFor, parksIn, verify } from './support.ts';

const SHAPE = { memoryMib: 8, pieces: 2 };
const CHECKPOINT = 'localhost/checkpoint';

t.test('containers from one image: hot, and after a new pool', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ ...SHAPE, image: true, shim: true });
  await lab.checkpoint(workload, { podmanOptions: ['--keep', `--create-image=${CHECKPOINT}`] });

  const layer = (await podman(lab.podman, ['image', 'mount', CHECKPOINT])).stdout;
  const [inside] = imagesIn(join(layer, 'checkpoint'));
  const [kept] = imagesIn(await imageDir(lab, workload));
  t.ok(inside && kept && readFileSync(inside.file).equals(readFileSync(kept.file)), 'the image of GPU memory is in it');
  await podman(lab.podman, ['image', 'umount', CHECKPOINT]);

  const running: { name: string; pid: number; seed: number }[] = [];
  const another = async (path: string, options: LabAction = {}): Promise<void> => {
    const seed = 50 + running.length;
    const name = `${workload.name}-${seed}`;
    const restored = await lab.restore({ ...workload, name }, { image: CHECKPOINT, ...options });
    expectPaths(t, restored, [path], name);
    await verify(t, workload, SHAPE, `${name}, ${path}: as it was checkpointed`);
    await workload.ask({ seed });
    const { pid } = await inspectContainer(lab.podman, name);
    running.push({ name, pid, seed });
    process.kill(pid, 'SIGSTOP'); // all answer in the same place
  };
  // Without --keep podman removes what it has unpacked of the image: the first container's own stays, and so does the master.
  const copy = { env: { CUDAPOOL_HOT: 'copy' }, podmanOptions: [] };
  await another('hot-copy', copy);
  await another('hot-copy', copy);
  t.match(await parksIn(lab), [{ tier: 'hot', path: kept?.file }], 'the master stays');
  await another('hot-move', { env: { CUDAPOOL_HOT: 'move' } });
  await lab.startPool();
  await another('loaded', { podmanOptions: [] });

  for (const { name, pid, seed } of running) {
    process.kill(pid, 'SIGCONT');
    await verify(t, workload, { ...SHAPE, seed }, `${name}: its own copy`);
    process.kill(pid, 'SIGSTOP');
  }
});
