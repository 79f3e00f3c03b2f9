// SPDX-License-Identifier: MIT
// The driver's first steps in a new process, cold and with a pool beside it: each sample a child that times itself.
import { Bench } from 'tinybench';
import { type DriverTimes, driverTimes } from '../../driver/index.ts';
import type { Bed } from '../bed.ts';
import type { Experiment, Outcome } from '../experiment.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

const VARIANTS = [
  { name: 'cold', label: 'no other process uses the driver' },
  { name: 'warm', label: 'the pool is running' },
] as const;

/**
 * One child as tinybench's sample: its own figure is the duration, as the start of a process is not what is measured.
 * tinybench sorts what it collects, so each sample is a run of its own and the record keeps the order.
 */
async function sample(bed: Bed): Promise<Outcome> {
  let times: DriverTimes | undefined;
  const bench = new Bench({ iterations: 1, time: 0, warmup: false, throws: true });
  bench.add('first steps', async () => {
    times = await driverTimes({ env: { ...bed.env, LD_PRELOAD: undefined } });
    return { overriddenDuration: times.cuinit_ms + times.context_ms };
  });
  const [task] = await bench.run();
  const first_steps_ms = task?.result !== undefined && 'latency' in task.result ? task.result.latency.mean : Number.NaN;
  return { verified: true, values: { first_steps_ms, ...times } };
}

function experiment({ bed }: SuiteOptions): Experiment {
  return {
    suite: 'micro',
    title: "A new process's first steps with the driver: cuInit, primary context, the same context again.",
    setup: {},
    variants: VARIANTS,
    metrics: [
      { name: 'cuinit_ms', unit: 'ms', label: 'cuInit' },
      { name: 'context_ms', unit: 'ms', label: 'primary context' },
      { name: 'retain_again_ms', unit: 'ms', label: 'primary context once more: a warm one handed back' },
      { name: 'first_steps_ms', unit: 'ms', label: 'cuInit and context' },
    ],
    prepare: async (variant) => {
      if (variant === 'warm') await bed.pool.on();
      else await bed.pool.off();
    },
    run: () => sample(bed),
    finish: () => bed.pool.off(),
  };
}

export const microSuite: Suite = {
  name: 'micro',
  summary: "a new process's cuInit and context, cold and with the pool running",
  runs: 10,
  seconds: 20,
  experiments: (options) => [experiment(options)],
};
