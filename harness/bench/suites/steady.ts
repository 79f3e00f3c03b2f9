// SPDX-License-Identifier: MIT
// What the shim costs while nothing is parked: the Llama's steps, the rate of small launches, and a call that the gate holds.
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { callRate } from '../../adapters/call-rate.ts';
import { CudapoolError } from '../../errors.ts';
import { built, inRoot } from '../../paths.ts';
import type { Bed } from '../bed.ts';
import type { Experiment } from '../experiment.ts';
import { askWorkload, endTree, startWorkload } from '../processes.ts';
import { type Observations, samples, type Target } from '../record.ts';
import { summarize } from '../stats.ts';
import type { Suite, SuiteOptions } from '../suite.ts';
import { needsTorch } from './llama.ts';

/** The second is the first once more: what differs between those two is noise. */
const VARIANTS = [
  { name: 'without', label: 'without the shim' },
  { name: 'again', label: 'without the shim, once more' },
  { name: 'with', label: 'with the shim' },
] as const;

const envOf = (bed: Bed, variant: string): Record<string, string | undefined> => ({
  ...bed.env,
  SOFTCUDA_COSTS: '', // what the driver spends must not hide what the shim does
  LD_PRELOAD: variant === 'with' ? built.shim : undefined,
});

const within = (what: string, metric: string): Target => ({
  kind: 'ratio',
  what: `${what}, of that without the shim`,
  metric,
  variant: 'with',
  baseline: 'without',
  max: 1.01,
});

const PASS_MS = 1500;
const CALLS = [
  { metric: 'launch_1_ns', call: 'launch', threads: 1, label: 'a small kernel, 1 thread' },
  { metric: 'record_1_ns', call: 'record', threads: 1, label: 'cuEventRecord, 1 thread' },
  { metric: 'record_16_ns', call: 'record', threads: 16, label: 'cuEventRecord, 16 threads' },
] as const;

/** How much more the median is than without: with the shim, and where nothing is different. */
function added(seen: Observations): Record<string, number> {
  const facts: Record<string, number> = {};
  for (const { metric } of CALLS) {
    const [without, again, with_] = VARIANTS.map(({ name }) => samples(seen, metric, name));
    if (!without?.length || !again?.length || !with_?.length) continue;
    const base = summarize(without).median;
    facts[`${metric}_added`] = summarize(with_).median - base;
    facts[`${metric}_noise`] = summarize(again).median - base;
  }
  return facts;
}

function calls({ bed }: SuiteOptions): Experiment {
  const gate = (metric: string, label: string): Target => ({
    kind: 'fact',
    what: `the gate adds to ${label}, ns`,
    fact: `${metric}_added`,
    max: 10,
  });
  return {
    suite: 'steady',
    case: 'calls',
    title: 'Driver calls that submit work, with the shim and without, in a new process each time.',
    setup: { pass_ms: PASS_MS },
    variants: VARIANTS,
    metrics: CALLS.map(({ metric, label }) => ({ name: metric, unit: 'ns', label })),
    targets: [
      within('a small kernel', 'launch_1_ns'),
      gate('record_1_ns', 'cuEventRecord, 1 thread'),
      gate('record_16_ns', 'cuEventRecord, 16 threads'),
    ],
    prepare: () => bed.pool.on().then(() => undefined), // a warm driver: these processes start faster
    run: async (variant) => {
      const values: Record<string, number> = {};
      for (const { metric, call, threads } of CALLS)
        values[metric] = await callRate(call, threads, PASS_MS, envOf(bed, variant));
      return { verified: true, values };
    },
    facts: added,
    finish: () => bed.pool.off(),
  };
}

const STEADY_S = 8;
const START_MS = 240_000;

function llama({ bed }: SuiteOptions): Experiment {
  return {
    suite: 'steady',
    case: 'llama',
    title: `PyTorch's Llama generating for ${STEADY_S} seconds: a step's time, with the shim and without, in a new process each time.`,
    setup: { steady_s: STEADY_S },
    variants: VARIANTS,
    metrics: [{ name: 'step_ms', unit: 'ms', label: 'eight tokens' }],
    targets: [within("the Llama's step", 'step_ms')],
    prepare: () => bed.pool.on().then(() => undefined),
    run: async (variant) => {
      const workload = await startWorkload({
        dir: join(bed.scratch, 'steady'),
        env: envOf(bed, variant),
        memoryMib: 0,
        command: ['python3', inRoot('workloads', 'llama.py'), '--steady'],
        startMs: START_MS,
      });
      try {
        await askWorkload(workload); // steps are counted from here on
        await sleep(STEADY_S * 1000);
        const { answers } = await askWorkload(workload);
        const [answer] = answers;
        if (answer?.step_ms === undefined) throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', 'the Llama tells no step');
        return { verified: true, values: { step_ms: answer.step_ms }, notes: { steps: answer.steps ?? 0 } };
      } finally {
        await endTree(workload.pid);
      }
    },
    finish: () => bed.pool.off(),
  };
}

export const steadySuite: Suite = {
  name: 'steady',
  summary: "the shim while nothing is parked: the Llama's step, small launches, and the gate",
  runs: 4,
  warmup: 0,
  seconds: 420,
  experiments: (options) => [calls(options), llama(options)],
  leaveOut: async ({ bed }, name) => (name === 'llama' ? needsTorch(bed, 'transformers') : undefined),
};
