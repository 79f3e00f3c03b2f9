// SPDX-License-Identifier: MIT
// CRIU by itself on a plain process: dump and restore, with upstream's plugin and NVIDIA's tool, and with the pool.
import { join } from 'node:path';
import type { Way } from '../bed.ts';
import { countExecuted, executedMost } from '../executed.ts';
import type { Experiment } from '../experiment.ts';
import { gainFacts, gainTargets } from '../prediction.ts';
import { askWorkload, checkAnswers, dumpWorkload, endTree, restoreWorkload, startWorkload } from '../processes.ts';
import { type Suite, type SuiteOptions, WAYS } from '../suite.ts';

/** The third row shows what of the gain is the pool's, and what comes from leaving pages of zeros out of the checkpoint. */
const VARIANTS = [...WAYS, { name: 'pool_zeros', label: 'With pool, zeros kept' }];
const wayOf = (variant: string): Way => (variant === 'stock' ? 'stock' : 'pool');

function experiment({ bed, memoryMib = 0 }: SuiteOptions): Experiment {
  const images = join(bed.scratch, 'criu');
  return {
    suite: 'criu',
    case: `${memoryMib}mib`,
    title: `CRIU's dump and restore of a process with ${memoryMib === 0 ? 'an empty CUDA context' : `${memoryMib} MiB of GPU memory`}, to its first right answer.`,
    setup: { memory_mib: memoryMib },
    variants: VARIANTS,
    metrics: [
      { name: 'restore_ms', unit: 'ms', label: 'restore, to the first right answer' },
      { name: 'restore_command_ms', unit: 'ms', label: 'criu restore' },
      { name: 'dump_ms', unit: 'ms', label: 'criu dump' },
      { name: 'executed', unit: '', label: 'executions of cuda-checkpoint in dump and restore' },
    ],
    targets: [
      ...(memoryMib === 0
        ? [
            {
              kind: 'ratio',
              what: "CRIU's restore of an empty context, of stock",
              metric: 'restore_ms',
              variant: 'pool',
              baseline: 'stock',
              max: 0.6,
            } as const,
          ]
        : []),
      { kind: 'fact', what: 'executions of cuda-checkpoint with the pool', fact: 'executed_with_pool', max: 0 },
      ...gainTargets(bed),
    ],
    // The pool runs for the runs with it, and only then: without it nothing may be warm.
    prepare: async (variant) => {
      if (wayOf(variant) === 'pool') await bed.pool.on();
      else await bed.pool.off();
    },
    run: async (variant) => {
      const run = bed.criu(wayOf(variant), images, variant === 'pool_zeros' ? { CUDAPOOL_DROP_ZERO_PAGES: '0' } : {});
      const workload = await startWorkload({ dir: join(bed.scratch, 'criu-app'), env: bed.env, memoryMib });
      try {
        const before = (await askWorkload(workload)).answers;
        checkAnswers(workload, before);
        const { result, values, notes } = await countExecuted(bed.tools, async () => ({
          dump_ms: await dumpWorkload(run, workload),
          restored: await restoreWorkload(run, workload),
        }));
        const { dump_ms, restored } = result;
        checkAnswers(workload, restored.answers, before);
        return {
          verified: true,
          values: {
            restore_ms: restored.answer_ms,
            restore_command_ms: restored.command_ms,
            dump_ms,
            ...values,
          },
          notes,
        };
      } finally {
        await endTree(workload.pid);
      }
    },
    facts: (seen) => ({
      ...executedMost(seen, ['stock', 'pool']),
      ...gainFacts(bed, seen, 'restore_ms'),
    }),
    finish: () => bed.pool.off(),
  };
}

export const criuSuite: Suite = {
  name: 'criu',
  summary: "CRIU alone on a plain process: dump and restore, upstream's plugin against the pool",
  runs: 10,
  seconds: 65,
  experiments: (options) => [experiment(options)],
};
