// SPDX-License-Identifier: MIT
// A process that was dumped before it ever used CUDA: its first CUDA call after the restore, with and without the shim.
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { criuRestore } from '../../adapters/criu-run.ts';
import { CudapoolError } from '../../errors.ts';
import { built } from '../../paths.ts';
import type { Bed } from '../bed.ts';
import type { Experiment } from '../experiment.ts';
import { askWorkload, checkAnswers, dumpWorkload, endTree, startWorkload } from '../processes.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

const LATER_MS = 500;

const VARIANTS = [
  { name: 'bare_later', label: `without the shim, asked ${LATER_MS} ms after the restore` },
  { name: 'shim_later', label: `with the shim, asked ${LATER_MS} ms after the restore` },
  { name: 'bare_at_once', label: 'without the shim, asked at once' },
  { name: 'shim_at_once', label: 'with the shim, asked at once' },
] as const;

async function once(bed: Bed, variant: string): Promise<{ first_call_ms: number; answer_ms: number }> {
  const shim = variant.startsWith('shim');
  const later = variant.endsWith('later');
  const run = bed.criu('stock', join(bed.scratch, 'late'));
  const workload = await startWorkload({
    dir: join(bed.scratch, 'late-app'),
    env: { ...bed.env, CUDAPOOL_WARM: 'restore', LD_PRELOAD: shim ? built.shim : undefined },
    memoryMib: 0,
    when: 'ask',
  });
  try {
    await dumpWorkload(run, workload);
    await criuRestore(run);
    if (later) await sleep(LATER_MS);
    const { answers, wall_ms } = await askWorkload(workload);
    checkAnswers(workload, answers);
    const us = answers[0]?.first_call_us;
    if (us === undefined) {
      throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', 'the workload had used CUDA before it was dumped');
    }
    return { first_call_ms: us / 1000, answer_ms: wall_ms };
  } finally {
    await endTree(workload.pid);
  }
}

function experiment({ bed }: SuiteOptions): Experiment {
  return {
    suite: 'late',
    title: 'A process dumped before it used CUDA: its first CUDA call (cuInit and primary context) after the restore.',
    setup: { later_ms: LATER_MS },
    variants: VARIANTS,
    metrics: [
      { name: 'first_call_ms', unit: 'ms', label: 'first CUDA call' },
      { name: 'answer_ms', unit: 'ms', label: 'question to answer' },
    ],
    targets: [
      {
        kind: 'ratio',
        what: `first call ${LATER_MS} ms after the restore, of cold`,
        metric: 'first_call_ms',
        variant: 'shim_later',
        baseline: 'bare_later',
        max: 0.15,
      },
      {
        kind: 'ratio',
        what: 'first call made at once, of cold: never slower',
        metric: 'first_call_ms',
        variant: 'shim_at_once',
        baseline: 'bare_at_once',
        max: 1.05,
      },
    ],
    prepare: () => bed.pool.off(),
    run: async (variant) => ({ verified: true, values: await once(bed, variant) }),
  };
}

export const lateSuite: Suite = {
  name: 'late',
  summary: 'a process dumped before it used CUDA: its first CUDA call after the restore, with the shim and without',
  runs: 8,
  seconds: 50,
  experiments: (options) => [experiment(options)],
};
