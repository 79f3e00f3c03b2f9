// SPDX-License-Identifier: MIT
// The guide's steps 7 and 8: podman containers, one checkpointed without the pool and one with it, restored in turn.
import type { Answer } from '../../container/ask.ts';
import type { Lab, Workload } from '../../container/lab.ts';
import { CudapoolError } from '../../errors.ts';
import { labOf, labPoolOn, type Way } from '../bed.ts';
import { countExecuted, executedMost } from '../executed.ts';
import type { Experiment } from '../experiment.ts';
import { gainFacts, gainTargets } from '../prediction.ts';
import { checkAnswers, timeRestore } from '../processes.ts';
import { type Suite, type SuiteOptions, WAYS } from '../suite.ts';

const RESTORE_MS = 180_000;
const SEED = 1;

interface Container {
  readonly workload: Workload;
  readonly answers: readonly Answer[];
}

const actionOf = (way: Way) => (way === 'stock' ? ({ pool: false, plugin: 'stock' } as const) : { pool: true });

function experiment({ bed, memoryMib = 0 }: SuiteOptions): Experiment {
  const expected = { memoryMib, seed: SEED };
  const containers = new Map<Way, Container>();
  let lab: Lab | undefined;

  async function leave(): Promise<void> {
    const left = lab;
    lab = undefined;
    containers.clear();
    await left?.dispose();
  }

  async function theLab(): Promise<Lab> {
    lab ??= await labOf(bed);
    return lab;
  }

  /** The container of one way with its one checkpoint, which that way made: upstream's plugin, or ours with the pool. */
  async function checkpointed(way: Way): Promise<Container> {
    const known = containers.get(way);
    if (known !== undefined) return known;
    const at = await theLab();
    const workload = await at.start({ memoryMib, seed: SEED });
    const { answers } = await workload.ask();
    checkAnswers(expected, answers);
    await at.checkpoint(workload, actionOf(way));
    const container = { workload, answers };
    containers.set(way, container);
    return container;
  }

  return {
    suite: 'restore',
    case: `${memoryMib}mib`,
    title: `podman container restore --keep of a container with ${memoryMib === 0 ? 'an empty CUDA context' : `${memoryMib} MiB of GPU memory`}, to its first right answer.`,
    setup: { memory_mib: memoryMib },
    variants: WAYS,
    metrics: [
      { name: 'restore_ms', unit: 'ms', label: 'restore, to the first right answer' },
      { name: 'podman_ms', unit: 'ms', label: 'podman container restore' },
      { name: 'executed', unit: '', label: 'executions of cuda-checkpoint' },
    ],
    targets: [
      ...(memoryMib === 0
        ? [
            {
              kind: 'ratio',
              what: "podman's restore of an empty context, of stock",
              metric: 'restore_ms',
              variant: 'pool',
              baseline: 'stock',
              max: 0.65,
            } as const,
          ]
        : []),
      { kind: 'fact', what: 'executions of cuda-checkpoint with the pool', fact: 'executed_with_pool', max: 0 },
      ...gainTargets(bed),
    ],
    // A container that still runs would keep the driver warm for a run without the pool.
    prepare: async (variant) => {
      const way = variant as Way;
      const at = await theLab();
      for (const { workload } of containers.values()) if ((await workload.pid()) !== 0) await workload.kill();
      if (way === 'stock') await at.pool()?.stop();
      else await labPoolOn(at);
      await checkpointed(way);
    },
    run: async (variant) => {
      const way = variant as Way;
      const at = await theLab();
      const { workload, answers: before } = await checkpointed(way);
      const {
        result: restored,
        values,
        notes,
      } = await countExecuted(bed.tools, () =>
        timeRestore(workload, () => at.restore(workload, actionOf(way)), RESTORE_MS),
      );
      checkAnswers(expected, restored.answers, before);
      const { path, why, criu } = restored.result;
      if (path !== way || !criu.reached) {
        throw new CudapoolError(
          'ERR_CUDAPOOL_WRONG_PATH',
          `this restore should have gone the way '${way}', and went '${path}': ${why}`,
          {
            hint: criu.reached
              ? "see the plugin's messages in CRIU's restore.log"
              : 'the environment did not reach CRIU',
          },
        );
      }
      return {
        verified: true,
        values: {
          restore_ms: restored.answer_ms,
          podman_ms: restored.command_ms,
          ...values,
        },
        notes: { ...notes, why },
      };
    },
    facts: (seen) => ({
      ...executedMost(seen, ['stock', 'pool']),
      ...gainFacts(bed, seen, 'restore_ms'),
    }),
    finish: leave,
  };
}

export const restoreSuite: Suite = {
  name: 'restore',
  summary: "the guide's steps 7 and 8: a podman container restored without and with the pool",
  runs: 10,
  seconds: 60,
  experiments: (options) => [experiment(options)],
};
