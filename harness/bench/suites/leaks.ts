// SPDX-License-Identifier: MIT
// Many restores in a row: what the pool holds must not grow.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gpuMemoryUsedMib } from '../../adapters/nvidia-smi.ts';
import { driverMemory } from '../../driver/index.ts';
import { CudapoolError } from '../../errors.ts';
import type { Bed } from '../bed.ts';
import type { Experiment } from '../experiment.ts';
import { checkAnswers, checkpointed, type Dumped, endTree, restoreWorkload } from '../processes.ts';
import { type Observations, samples } from '../record.ts';
import { slope, summarize } from '../stats.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

/** Of the restores, the first part: the pool's buffers and the allocator's arenas reach their size in it. */
const SETTLING = 0.2;
const RSS_TOLERANCE_KIB = 512;

function residentKib(pid: number): number {
  const kib = readFileSync(`/proc/${pid}/status`, 'utf8').match(/^VmRSS:\s+(\d+) kB$/m)?.[1];
  if (kib === undefined) throw new CudapoolError('ERR_CUDAPOOL_POOL', `process ${pid} of the pool has ended`);
  return Number(kib);
}

const descriptors = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

/** MiB in use by all processes. The software driver is asked itself, without its costs; a GPU without adding a context to it. */
async function gpuMib(bed: Bed): Promise<number | undefined> {
  if (bed.driver === 'gpu') return gpuMemoryUsedMib();
  return (await driverMemory({ env: { ...bed.env, SOFTCUDA_COSTS: '' } })).used_bytes / 2 ** 20;
}

async function holdings(bed: Bed): Promise<Record<string, number>> {
  const keeper = bed.pool.current?.pid;
  const worker = ((await bed.pool.report()) as { worker?: { pid?: number } } | undefined)?.worker?.pid;
  if (keeper === undefined || !worker) throw new CudapoolError('ERR_CUDAPOOL_POOL', 'the pool has no worker');
  const gpu = await gpuMib(bed);
  return {
    keeper_rss_kib: residentKib(keeper),
    worker_rss_kib: residentKib(worker),
    keeper_fds: descriptors(keeper),
    worker_fds: descriptors(worker),
    ...(gpu !== undefined && { gpu_mib: gpu }),
  };
}

/** How much more a figure is at the end than after settling: medians of a tenth of the runs each. */
export function growth(values: readonly number[]): number {
  const settled = values.slice(Math.floor(values.length * SETTLING));
  const part = Math.max(1, Math.floor(settled.length / 10));
  return summarize(settled.slice(-part)).median - summarize(settled.slice(0, part)).median;
}

function growthFacts(seen: Observations): Record<string, number> {
  const facts: Record<string, number> = {};
  for (const { name } of seen.metrics) {
    const values = samples(seen, name, 'pool');
    if (name === 'restore_ms' || values.length < 2) continue;
    facts[`${name}_growth`] = growth(values);
    facts[`${name}_per_restore`] = slope(values.slice(Math.floor(values.length * SETTLING)));
  }
  return facts;
}

function experiment({ bed, memoryMib = 0 }: SuiteOptions): Experiment {
  const run = bed.criu('pool', join(bed.scratch, 'leaks'));
  let dumped: Dumped | undefined;
  const none = (what: string, fact: string, max = 0) =>
    ({ kind: 'fact', what: `growth of ${what}`, fact, max }) as const;
  return {
    suite: 'leaks',
    case: `${memoryMib}mib`,
    title: 'One checkpoint restored again and again with the pool: what keeper and worker hold after each restore.',
    setup: { memory_mib: memoryMib, settling: SETTLING },
    variants: [{ name: 'pool', label: 'with the pool' }],
    metrics: [
      { name: 'restore_ms', unit: 'ms', label: 'restore, to the first right answer' },
      { name: 'keeper_rss_kib', unit: 'KiB', label: "keeper's memory" },
      { name: 'worker_rss_kib', unit: 'KiB', label: "worker's memory" },
      { name: 'keeper_fds', unit: '', label: "keeper's descriptors" },
      { name: 'worker_fds', unit: '', label: "worker's descriptors" },
      { name: 'gpu_mib', unit: 'MiB', label: 'GPU memory in use' },
    ],
    targets: [
      none("the keeper's memory, KiB", 'keeper_rss_kib_growth', RSS_TOLERANCE_KIB),
      none("the worker's memory, KiB", 'worker_rss_kib_growth', RSS_TOLERANCE_KIB),
      none("the keeper's descriptors", 'keeper_fds_growth'),
      none("the worker's descriptors", 'worker_fds_growth'),
      none('GPU memory in use, MiB', 'gpu_mib_growth'),
    ],
    prepare: async () => {
      await bed.pool.on();
      dumped ??= await checkpointed(run, { dir: join(bed.scratch, 'leaks-app'), env: bed.env, memoryMib });
    },
    run: async () => {
      if (dumped === undefined) throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', 'there is no checkpoint');
      const { workload, answers } = dumped;
      let restore_ms: number;
      try {
        const restored = await restoreWorkload(run, workload);
        checkAnswers(workload, restored.answers, answers);
        restore_ms = restored.answer_ms;
      } finally {
        await endTree(workload.pid);
      }
      return { verified: true, values: { restore_ms, ...(await holdings(bed)) } };
    },
    facts: growthFacts,
    finish: () => bed.pool.off(),
  };
}

export const leaksSuite: Suite = {
  name: 'leaks',
  summary: 'a hundred restores in a row: memory, descriptors and GPU memory of the pool must not grow',
  runs: 100,
  seconds: 90,
  experiments: (options) => [experiment(options)],
};
