// SPDX-License-Identifier: MIT
// The drop-in cuda-checkpoint: CRIU with upstream's plugin gets the warm pool, too.
import { dirname } from 'node:path';
import t from 'tap';
import { poolReport } from '../../harness/container/pool-process.ts';
import { built } from '../../harness/paths.ts';
import { labFor, verify } from './support.ts';

const restores = (report: Record<string, unknown> | undefined): number =>
  (report?.actions as { restore?: { ok?: number } } | undefined)?.restore?.ok ?? 0;

t.test('upstream’s plugin, with the drop-in first in PATH', async (t) => {
  const lab = await labFor(t, { pathDirs: [dirname(built.dropin)] });
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 2, processes: 2 });
  for (let i = 1; i <= 2; i++) {
    const dumped = await lab.checkpoint(workload, { plugin: 'stock' });
    t.equal(dumped.path, 'stock', 'nothing in CRIU knows of the pool');
    await lab.restore(workload, { plugin: 'stock' });
    await verify(t, workload, 2, `${i}`);
    t.equal(restores(await poolReport(lab.poolPlace())), 2 * i, `${i}: the pool did the restores`);
  }
});

t.test('the same without a pool: it starts one', async (t) => {
  const lab = await labFor(t, { pathDirs: [dirname(built.dropin)] });
  const workload = await lab.start({ memoryMib: 1 });
  await lab.checkpoint(workload, { plugin: 'stock' });
  await lab.restore(workload, { plugin: 'stock' });
  await verify(t, workload, 1, 'afterwards');
  t.ok(await poolReport(lab.poolPlace()));
});
