// SPDX-License-Identifier: MIT
// Many restores in a row: the pool's memory, its descriptors and the GPU's memory are as before ('no memory leaks').
import { readdirSync, readFileSync } from 'node:fs';
import t from 'tap';
import type { Lab } from '../../harness/container/lab.ts';
import { driverMemory } from '../../harness/driver/index.ts';
import { labFor, verify } from './support.ts';

/** CUDAPOOL_TEST_LONG=1: as many as the guide's "multiple restores" are measured with. */
const RESTORES = process.env.CUDAPOOL_TEST_LONG === '1' ? 100 : 20;
/** What the first restores may still allocate once. */
const WARM_UP = 3;
const SLACK_KB = 512;

interface Size {
  readonly rss_kb: number;
  readonly fds: number;
  readonly gpu_bytes: number;
}

const gpuBytes = async (lab: Lab): Promise<number> => (await driverMemory({ env: lab.env })).used_bytes;

/** The process and its children, keeper and worker; and what all processes have taken of the GPU's memory. */
async function sizeOf(pool: number, lab: Lab): Promise<Size> {
  const children = readFileSync(`/proc/${pool}/task/${pool}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
  const all = [pool, ...children];
  const rss = (pid: number): number =>
    Number(/^VmRSS:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0);
  return {
    rss_kb: all.reduce((sum, pid) => sum + rss(pid), 0),
    fds: all.reduce((sum, pid) => sum + readdirSync(`/proc/${pid}/fd`).length, 0),
    gpu_bytes: await gpuBytes(lab),
  };
}

t.setTimeout(RESTORES * 6000);

t.test(`${RESTORES} restores in a row`, { timeout: RESTORES * 6000 }, async (t) => {
  const lab = await labFor(t);
  const pool = await lab.startPool();
  const workload = await lab.start({ memoryMib: 1, processes: 2 });
  await lab.checkpoint(workload);
  let before: Size = { rss_kb: 0, fds: 0, gpu_bytes: 0 };
  for (let i = 1; i <= RESTORES; i++) {
    const restored = await lab.restore(workload);
    if (restored.path !== 'pool') t.fail(`${i}: ${restored.why}`);
    await workload.ask();
    await workload.kill();
    if (i === WARM_UP) before = await sizeOf(pool.pid, lab);
  }
  const after = await sizeOf(pool.pid, lab);
  t.equal(after.fds, before.fds, 'descriptors');
  t.equal(after.gpu_bytes, before.gpu_bytes, 'GPU memory');
  t.ok(after.rss_kb <= before.rss_kb + SLACK_KB, `memory: ${before.rss_kb} KiB, then ${after.rss_kb} KiB`);
  await lab.restore(workload);
  await verify(t, workload, 1, 'the last one');
  t.ok((await gpuBytes(lab)) >= after.gpu_bytes + 2 * (1 << 20), "a running container's GPU memory is counted");
});
