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
    metric: `${call.name}_${threads}`,
    label: `${call.function}, ${threads} thread${threads === 1 ? '' : 's'}`,
  })),
);

/**
 * Each of them less the same calls without the shim. Where a driver's call takes a contended lock, a nanosecond spent
 * before it, by whomever, may move its time by more: the second and the third say whether it does.
 */
const DIFFERENCES = [
  { measured: 'with_ns', suffix: 'ns', label: 'added by the shim' },
  { measured: 'control_ns', suffix: 'control_ns', label: 'added by a function that does as much' },
  { measured: 'again_ns', suffix: 'again_ns', label: 'added by nothing, the same once more' },
] as const;

function experiment({ bed }: SuiteOptions): Experiment {
  let built = false;
  return {
    suite: 'cost',
    title: 'What the shim adds: with it less without it, both measured in turn by test/shim/call_cost.',
    setup: {},
    variants: [{ name: 'shim', label: 'call_cost' }],
    metrics: [
      ...CASES.flatMap(({ metric, label }) =>
        DIFFERENCES.map((each) => ({ name: `${metric}_${each.suffix}`, unit: 'ns', label: `${label}: ${each.label}` })),
      ),
      { name: 'start_up_ms', unit: 'ms', label: 'a process that does not use CUDA: added by the shim' },
    ],
    targets: [
      ...CASES.map(
        ({ metric, label }) =>
          ({
            kind: 'at_most',
            what: `${label}: added by the shim, ns`,
            metric: `${metric}_ns`,
            variant: 'shim',
            max: 20,
          }) as const,
      ),
      {
        kind: 'at_most',
        what: 'a process that does not use CUDA: added by the shim, ms',
        metric: 'start_up_ms',
        variant: 'shim',
        max: 1,
      },
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
        if (found === undefined) continue;
        for (const { measured, suffix } of DIFFERENCES) {
          values[`${each.metric}_${suffix}`] = found[measured] - found.without_ns;
        }
      }
      return { verified: Object.keys(values).length === CASES.length * DIFFERENCES.length + 1, values };
    },
  };
}

export const costSuite: Suite = {
  name: 'cost',
  summary: 'what the shim adds to a call that needs no action, and to a process without CUDA',
  runs: 3,
  seconds: 120,
  experiments: (options) => [experiment(options)],
};
