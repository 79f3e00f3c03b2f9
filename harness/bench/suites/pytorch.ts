// SPDX-License-Identifier: MIT
// PyTorch's first CUDA call after its import, cold and with the shim warming during the import.
import * as v from 'valibot';
import { hasModule, runForJson } from '../../adapters/python.ts';
import { CudapoolError } from '../../errors.ts';
import { built, inRoot } from '../../paths.ts';
import type { Experiment } from '../experiment.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

const VARIANTS = [
  { name: 'cold', label: 'without the shim' },
  { name: 'shim', label: 'with the shim, warming during the import' },
] as const;

const ms = v.pipe(v.number(), v.finite(), v.minValue(0));
const Printed = v.object({
  import_ms: ms,
  first_call_ms: ms,
  second_call_ms: ms,
  first_kernel_ms: ms,
  sum: v.number(),
  count: v.number(),
  torch: v.string(),
  device: v.string(),
});

const RUN_MS = 120_000;

function experiment({ bed }: SuiteOptions): Experiment {
  return {
    suite: 'pytorch',
    title: "PyTorch's first CUDA call after `import torch`, in a new process each time.",
    setup: { warm: 'start:python3' },
    variants: VARIANTS,
    metrics: [
      { name: 'first_call_ms', unit: 'ms', label: 'first CUDA call' },
      { name: 'import_ms', unit: 'ms', label: 'import torch' },
      { name: 'first_kernel_ms', unit: 'ms', label: 'first kernels' },
      { name: 'second_call_ms', unit: 'ms', label: 'second call' },
    ],
    targets: [
      {
        kind: 'ratio',
        what: "PyTorch's first CUDA call, of cold",
        metric: 'first_call_ms',
        variant: 'shim',
        baseline: 'cold',
        max: 0.1,
      },
    ],
    prepare: () => bed.pool.off(),
    run: async (variant) => {
      const shim =
        variant === 'shim' ? { LD_PRELOAD: built.shim, CUDAPOOL_WARM: 'start:python3' } : { LD_PRELOAD: undefined };
      const document = await runForJson(inRoot('workloads', 'first_call.py'), { ...bed.env, ...shim }, RUN_MS);
      const printed = v.safeParse(Printed, document);
      if (!printed.success || printed.output.sum !== printed.output.count) {
        throw new CudapoolError(
          'ERR_CUDAPOOL_WRONG_ANSWER',
          `first_call.py printed something wrong: ${JSON.stringify(document).slice(0, 300)}`,
        );
      }
      const { import_ms, first_call_ms, first_kernel_ms, second_call_ms, torch, device } = printed.output;
      return {
        verified: true,
        values: { first_call_ms, import_ms, first_kernel_ms, second_call_ms },
        notes: { torch, device },
      };
    },
  };
}

export const pytorchSuite: Suite = {
  name: 'pytorch',
  summary: "PyTorch's first CUDA call, cold and with the shim",
  runs: 8,
  seconds: 90,
  unfit: async (bed) => {
    if (bed.driver !== 'gpu') return 'PyTorch needs a GPU: it does not run on the software driver';
    return (await hasModule('torch')) ? undefined : 'python3 has no PyTorch';
  },
  experiments: (options) => [experiment(options)],
};
