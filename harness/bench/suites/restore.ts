// SPDX-License-Identifier: MIT
// The guide's steps 7 and 8: a podman container, checkpointed once and restored without and with the pool in turn.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Answer } from '../../container/ask.ts';
import { type Lab, makeLab, type Workload } from '../../container/lab.ts';
import type { OwnPool } from '../../container/pool-process.ts';
import { CudapoolError } from '../../errors.ts';
import { SETTLE_MS, type Way } from '../bed.ts';
import { countExecuted, executedMost } from '../executed.ts';
import type { Experiment } from '../experiment.ts';
import { gainFacts } from '../prediction.ts';
import { checkAnswers, timeRestore } from '../processes.ts';
import { type Suite, type SuiteOptions, WAYS } from '../suite.ts';

const RESTORE_MS = 180_000;
const SEED = 1;

interface Container {
  readonly lab: Lab;
  readonly workload: Workload;
  readonly answers: readonly Answer[];
}

const runs = (pool: OwnPool | undefined): boolean =>
  pool !== undefined && pool.child.exitCode === null && pool.child.signalCode === null;

function experiment({ bed, memoryMib = 0 }: SuiteOptions): Experiment {
  const expected = { memoryMib, seed: SEED };
  let lab: Lab | undefined;
  let container: Container | undefined;

  async function leave(): Promise<void> {
    const left = lab;
    lab = undefined;
    await left?.dispose();
  }

  /** The container with its one checkpoint; made by upstream's plugin, so that both ways restore the same. */
  async function checkpointed(): Promise<Container> {
    if (container !== undefined) return container;
    await leave();
    lab = await makeLab({
      driver: bed.driver === 'gpu' ? 'gpu' : 'software',
      criu: bed.criuTree,
      env: bed.costs === undefined ? {} : { SOFTCUDA_COSTS: bed.costs },
    });
    const workload = await lab.start({ memoryMib, seed: SEED });
    const { answers } = await workload.ask();
    checkAnswers(expected, answers);
    await lab.checkpoint(workload, { pool: false, plugin: 'stock' });
    container = { lab, workload, answers };
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
    ],
    prepare: async (way) => {
      const { lab: at, workload } = await checkpointed();
      if ((await workload.pid()) !== 0) await workload.kill();
      if (way === 'stock') await at.pool()?.stop();
      else if (!runs(at.pool())) {
        await at.startPool();
        await sleep(SETTLE_MS);
      }
    },
    run: async (variant) => {
      const way = variant as Way;
      const { lab: at, workload, answers: before } = await checkpointed();
      const {
        result: restored,
        values,
        notes,
      } = await countExecuted(bed.tools, () =>
        timeRestore(
          workload,
          () => at.restore(workload, way === 'stock' ? { pool: false, plugin: 'stock' } : { pool: true }),
          RESTORE_MS,
        ),
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
