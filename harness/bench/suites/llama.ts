// SPDX-License-Identifier: MIT
// PyTorch's Llama in podman: checkpoint and restore, stock and with its GPU memory parked, to the first identical tokens.
import { hasModule } from '../../adapters/python.ts';
import type { Answer } from '../../container/ask.ts';
import { CudapoolError } from '../../errors.ts';
import { CYCLE_METRICS, chooseKinds, type Kind, kindVariants, makeCycle, memoryStorage } from '../cycle.ts';
import type { Experiment } from '../experiment.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

const LAYERS = 16;
const KINDS: readonly Kind[] = ['stock', 'hot-move', 'hot-copy', 'staged'];
/** Two checkpoints, and CRIU's own images of the stock one. */
const STORAGE = 24 * 2 ** 30;
const READY_MS = 240_000;

/** The tokens that it generates for a question: the same as before the checkpoint, bit by bit. */
export function checkTokens(answers: readonly Answer[], before?: readonly Answer[]): void {
  for (const [i, { tokens, checksum }] of answers.entries()) {
    const earlier = before?.[i];
    if (tokens !== undefined && (earlier === undefined || (tokens === earlier.tokens && checksum === earlier.checksum)))
      continue;
    throw new CudapoolError(
      'ERR_CUDAPOOL_WRONG_ANSWER',
      `the workload answered ${tokens ?? 'nothing'} / ${checksum}, and before ${earlier?.tokens} / ${earlier?.checksum}`,
      { hint: 'the restored process computes something else: this must never happen' },
    );
  }
}

export async function needsTorch(bed: SuiteOptions['bed'], ...modules: readonly string[]): Promise<string | undefined> {
  if (bed.driver !== 'gpu') return 'PyTorch needs a GPU: it does not run on the software driver';
  for (const name of ['torch', ...modules]) if (!(await hasModule(name))) return `python3 has no ${name}`;
  return undefined;
}

function experiment({ bed, ways }: SuiteOptions): Experiment {
  const storage = memoryStorage(STORAGE);
  const cycle = makeCycle({
    bed,
    storage,
    workload: {
      program: { kind: 'python', script: 'llama.py', args: ['--layers', String(LAYERS)] },
      readyMs: READY_MS,
    },
    check: checkTokens,
  });
  const against = (metric: string, what: string, max: number) =>
    ({ kind: 'ratio', what, metric, variant: 'hot-move', baseline: 'stock', max }) as const;
  return {
    suite: 'llama',
    title: "PyTorch's Llama with 6.55 GiB on the GPU: podman's checkpoint and restore, to its first tokens.",
    setup: { layers: LAYERS, storage: storage ?? 'disk' },
    variants: kindVariants(chooseKinds(KINDS, ways)),
    metrics: CYCLE_METRICS,
    targets: [
      against('restore_ms', 'hot-move restore, of stock', 0.2),
      { kind: 'at_most', what: 'hot-move restore, ms', metric: 'restore_ms', variant: 'hot-move', max: 1350 },
      against('checkpoint_ms', 'checkpoint with its image, of stock', 0.25),
    ],
    prepare: (variant) => cycle.prepare(variant as Kind),
    run: (variant) => cycle.run(variant as Kind),
    finish: () => cycle.leave(),
  };
}

export const llamaSuite: Suite = {
  name: 'llama',
  summary: "PyTorch's Llama in podman: stock, hot-move, hot-copy and staged, with the checkpoints",
  runs: 4,
  ways: true,
  seconds: 200,
  unfit: (bed) => needsTorch(bed, 'transformers'),
  experiments: (options) => [experiment(options)],
};
