// SPDX-License-Identifier: MIT
// What the shim costs where it does nothing: an intercepted call that needs no action, and a process without CUDA.
import { buildCallCost, callCost } from '../../adapters/call-cost.ts';
import type { Experiment } from '../experiment.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

const CALLS = [
  { name: 'get_current', function: 'cuCtxGetCurrent' },
  { name: 'get_state', function: 'cuDevicePrimaryCtxGetState' },
] as const;
const THREADS = [1, 16] as const;

const CASES = CALLS.flatMap((call) =>
  THREADS.map((threads) => ({
    ...call,
    threads,
    metric: `${call.name}_${threads}_ns`,
    label: `${call.function}, ${threads} thread${threads === 1 ? '' : 's'}: added to each call`,
  })),
);

function experiment({ bed }: SuiteOptions): Experiment {
  let built = false;
  return {
    suite: 'cost',
    title: 'What the shim adds: with it less without it, both measured in turn by test/shim/call_cost.',
    setup: {},
    variants: [{ name: 'shim', label: 'with the shim' }],
    metrics: [
      ...CASES.map(({ metric, label }) => ({ name: metric, unit: 'ns', label })),
      { name: 'start_up_ms', unit: 'ms', label: 'added to a process that does not use CUDA' },
    ],
    targets: [
      ...CASES.map(
        ({ metric, label }) => ({ kind: 'at_most', what: `${label}, ns`, metric, variant: 'shim', max: 20 }) as const,
      ),
      { kind: 'at_most', what: 'added to a process without CUDA, ms', metric: 'start_up_ms', variant: 'shim', max: 1 },
    ],
    prepare: async () => {
      if (!built) await buildCallCost();
      built = true;
      await bed.pool.off();
    },
    run: async () => {
      const { calls, start_up } = await callCost({ ...bed.env, SOFTCUDA_COSTS: '' });
      const values: Record<string, number> = { start_up_ms: start_up.with_ms - start_up.without_ms };
      for (const each of CASES) {
        const found = calls.find((call) => call.function === each.function && call.threads === each.threads);
        if (found !== undefined) values[each.metric] = found.with_ns - found.without_ns;
      }
      return { verified: Object.keys(values).length === CASES.length + 1, values };
    },
  };
}

export const costSuite: Suite = {
  name: 'cost',
  summary: 'what the shim adds to a call that needs no action, and to a process without CUDA',
  runs: 3,
  seconds: 20,
  experiments: (options) => [experiment(options)],
};
