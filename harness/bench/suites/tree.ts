// SPDX-License-Identifier: MIT
// A tree of processes: the driver's restores one by one, and all at once.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { criuLogFile } from '../../adapters/criu-run.ts';
import { CudapoolError } from '../../errors.ts';
import type { Experiment } from '../experiment.ts';
import { checkAnswers, checkpointed, type Dumped, endTree, restoreWorkload } from '../processes.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

const PROCESSES = 4;

const VARIANTS = [
  { name: 'one_by_one', label: 'one by one' },
  { name: 'at_once', label: 'at once' },
] as const;

/** From CRIU's log of a restore: how long the plugin says the driver's restore and unlock of all processes took. */
export function hookMs(log: string, processes: number): number {
  const said = /cuda_plugin: GPU state of (\d+) process\(es\) restored in (\d+) ms/.exec(log);
  if (said === null || Number(said[1]) !== processes) {
    throw new CudapoolError(
      'ERR_CUDAPOOL_CRIU',
      `CRIU's log does not say how long the driver's restore of ${processes} processes took`,
      {
        hint: 'the plugin is not the patched one, or went the stock way: see restore.log',
      },
    );
  }
  return Number(said[2]);
}

function experiment({ bed, memoryMib = bed.driver === 'gpu' ? 4096 : 64 }: SuiteOptions): Experiment {
  const images = join(bed.scratch, 'tree');
  let dumped: Dumped | undefined;
  return {
    suite: 'tree',
    case: `${PROCESSES}x${memoryMib}mib`,
    title: `${PROCESSES} processes of ${memoryMib} MiB of GPU memory each, restored with the pool: one by one (CRIU_CUDA_PARALLEL_RESTORE=0) and at once.`,
    setup: { processes: PROCESSES, memory_mib: memoryMib },
    variants: VARIANTS,
    metrics: [
      { name: 'hook_ms', unit: 'ms', label: "the driver's restore of all" },
      { name: 'restore_ms', unit: 'ms', label: 'whole restore, to the last right answer' },
    ],
    targets: [
      {
        kind: 'ratio',
        what: "the driver's restores at once, of one by one",
        metric: 'hook_ms',
        variant: 'at_once',
        baseline: 'one_by_one',
        max: 0.5,
      },
    ],
    // One checkpoint for all runs: what differs is the restore alone.
    prepare: async () => {
      await bed.pool.on();
      dumped ??= await checkpointed(bed.criu('pool', images), {
        dir: join(bed.scratch, 'tree-app'),
        env: bed.env,
        memoryMib,
        processes: PROCESSES,
      });
    },
    run: async (variant) => {
      if (dumped === undefined) throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', 'there is no checkpoint');
      const { workload, answers } = dumped;
      const run = bed.criu('pool', images, { CRIU_CUDA_PARALLEL_RESTORE: variant === 'at_once' ? '1' : '0' });
      try {
        const restored = await restoreWorkload(run, workload);
        checkAnswers(workload, restored.answers, answers);
        const hook_ms = hookMs(readFileSync(criuLogFile(run, 'restore'), 'utf8'), PROCESSES);
        return { verified: true, values: { hook_ms, restore_ms: restored.answer_ms } };
      } finally {
        await endTree(workload.pid);
      }
    },
    finish: () => bed.pool.off(),
  };
}

export const treeSuite: Suite = {
  name: 'tree',
  summary: "four processes: the driver's restores one by one and at once",
  runs: 7,
  seconds: 260,
  experiments: (options) => [experiment(options)],
};
