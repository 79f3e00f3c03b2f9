// SPDX-License-Identifier: MIT
// Who carries out the driver's restore is killed within it: what state the process is in then, and whether a second try helps.
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type CheckpointTool, cudaAction, cudaState } from '../../adapters/cuda-checkpoint.ts';
import { asCudapoolError, CudapoolError } from '../../errors.ts';
import { built } from '../../paths.ts';
import type { Bed } from '../bed.ts';
import type { Experiment, Scalar } from '../experiment.ts';
import { alive, askWorkload, checkAnswers, endTree, startWorkload, type Workload } from '../processes.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

const VARIANTS = [
  { name: 'tool', label: "NVIDIA's cuda-checkpoint killed, then executed again" },
  { name: 'worker', label: "the pool's worker killed; the pool goes on by itself" },
] as const;

/** When in an undisturbed restore's time the kill comes; one after another. */
const MOMENTS = [0.1, 0.3, 0.5, 0.7, 0.9] as const;

const stockTool = (bed: Bed): CheckpointTool => ({
  path: join(bed.toolDirs[0] as string, 'cuda-checkpoint'),
  env: { ...bed.env, LD_PRELOAD: undefined },
});

const dropin = (bed: Bed): CheckpointTool => ({
  path: built.dropin,
  env: { ...bed.env, CUDAPOOL_SOCKET: bed.socket, CUDAPOOL_START: '0', LD_PRELOAD: undefined },
});

async function workerPid(bed: Bed): Promise<number> {
  const pid = ((await bed.pool.report()) as { worker?: { pid?: number } } | undefined)?.worker?.pid;
  if (!pid) throw new CudapoolError('ERR_CUDAPOOL_POOL', 'the pool has no worker');
  return pid;
}

async function checkpoint(tool: CheckpointTool, workload: Workload): Promise<void> {
  await cudaAction(tool, 'lock', workload.pid);
  await cudaAction(tool, 'checkpoint', workload.pid);
}

/** How long the action under way takes when nobody disturbs it; the process is checkpointed before and runs afterwards. */
async function undisturbedMs(tool: CheckpointTool, workload: Workload): Promise<number> {
  await checkpoint(tool, workload);
  const { wall_ms } = await cudaAction(tool, 'restore', workload.pid);
  await cudaAction(tool, 'unlock', workload.pid);
  return wall_ms;
}

interface Killed {
  readonly notes: Record<string, Scalar>;
  readonly values: Record<string, number>;
}

/** The tool itself is the victim: what the driver leaves, with nobody trying again, and whether it can be tried again. */
async function killTool(bed: Bed, workload: Workload, after: (ms: number) => number): Promise<Killed> {
  const tool = stockTool(bed);
  const whole = await undisturbedMs(tool, workload);
  const kill_at_ms = after(whole);
  await checkpoint(tool, workload);
  // execa's time limit ends it with SIGTERM, which the tool does not handle: as hard as SIGKILL.
  const first = await cudaAction(tool, 'restore', workload.pid, {
    timeoutMs: Math.max(1, kill_at_ms),
    reject: false,
  }).then(
    (result) => `had ended (exit code ${result.exitCode})`,
    (thrown: unknown) => {
      if (asCudapoolError(thrown).code !== 'ERR_CUDAPOOL_TIMEOUT') throw thrown;
      return 'killed';
    },
  );
  const state_after_kill = await cudaState(tool, workload.pid);
  const again =
    state_after_kill === 'checkpointed'
      ? await cudaAction(tool, 'restore', workload.pid, { reject: false })
      : undefined;
  const state_at_end = await cudaState(tool, workload.pid);
  if (state_at_end === 'locked') await cudaAction(tool, 'unlock', workload.pid, { reject: false });
  return {
    values: { undisturbed_ms: whole, kill_at_ms },
    notes: {
      first,
      state_after_kill,
      again: again === undefined ? 'not tried' : `exit code ${again.exitCode}`,
      state_at_end,
    },
  };
}

/** The worker is the victim: the drop-in's one action must still end well, by the worker that replaces it. */
async function killWorker(bed: Bed, workload: Workload, after: (ms: number) => number): Promise<Killed> {
  await bed.pool.on();
  const tool = dropin(bed);
  const whole = await undisturbedMs(tool, workload);
  const kill_at_ms = after(whole);
  await checkpoint(tool, workload);
  const victim = await workerPid(bed);
  const restoring = cudaAction(tool, 'restore', workload.pid, { reject: false });
  await sleep(kill_at_ms);
  process.kill(victim, 'SIGKILL');
  const state_after_kill = await cudaState(stockTool(bed), workload.pid);
  const restored = await restoring;
  const successor = await workerPid(bed).catch(() => 0);
  const state_at_end = await cudaState(stockTool(bed), workload.pid);
  const unlocked = await cudaAction(tool, 'unlock', workload.pid, { reject: false });
  return {
    values: { undisturbed_ms: whole, kill_at_ms, restore_ms: restored.wall_ms },
    notes: {
      state_after_kill,
      restore: restored.exitCode === 0 ? 'succeeded' : restored.stderr.trim().slice(0, 300),
      worker_replaced: successor !== 0 && successor !== victim,
      state_at_end,
      unlock: unlocked.exitCode === 0 ? 'succeeded' : unlocked.stderr.trim().slice(0, 300),
    },
  };
}

function experiment({ bed, memoryMib = bed.driver === 'gpu' ? 4096 : 64 }: SuiteOptions): Experiment {
  return {
    suite: 'worker-kill',
    case: `${memoryMib}mib`,
    title: `The driver's restore of ${memoryMib} MiB, with the one who carries it out killed at several moments of it.`,
    setup: { memory_mib: memoryMib, moments: MOMENTS.join(' ') },
    variants: VARIANTS,
    metrics: [
      { name: 'undisturbed_ms', unit: 'ms', label: 'the restore undisturbed' },
      { name: 'kill_at_ms', unit: 'ms', label: 'killed after' },
      { name: 'restore_ms', unit: 'ms', label: 'the disturbed restore, to its end' },
    ],
    targets: [{ kind: 'fact', what: "wrong or lost processes after the worker's death", fact: 'worker_lost', max: 0 }],
    run: async (variant, order) => {
      const moment = MOMENTS[Math.floor((order - 1) / VARIANTS.length) % MOMENTS.length] as number;
      if (variant === 'tool') await bed.pool.off();
      const workload = await startWorkload({ dir: join(bed.scratch, 'kill-app'), env: bed.env, memoryMib });
      try {
        const before = (await askWorkload(workload)).answers;
        const kill = variant === 'tool' ? killTool : killWorker;
        const { values, notes } = await kill(bed, workload, (ms) => ms * moment);
        const answer = await askWorkload(workload, 5000).then(
          ({ answers }) => {
            checkAnswers(workload, answers, before);
            return 'right';
          },
          (thrown: unknown) => asCudapoolError(thrown).message,
        );
        return {
          verified: answer === 'right',
          values,
          notes: { moment, ...notes, answer, alive: alive(workload.pid) },
        };
      } finally {
        await endTree(workload.pid);
      }
    },
    facts: (seen) => {
      const lost = (variant: string): number =>
        seen.runs.filter((run) => run.variant === variant && !run.verified).length;
      const states = (variant: string): string =>
        [
          ...new Set(
            seen.runs
              .filter((run) => run.variant === variant)
              .map((run) => String(run.notes?.state_after_kill ?? 'no run')),
          ),
        ].join('; ');
      return {
        worker_lost: lost('worker'),
        tool_lost: lost('tool'),
        driver_state_after_kill: states('tool'),
        state_seen_while_the_pool_goes_on: states('worker'),
      };
    },
    finish: () => bed.pool.off(),
  };
}

export const workerKillSuite: Suite = {
  name: 'worker-kill',
  summary: "kill -9 of the pool's worker within a restore: the driver's state, the second try, the answer",
  runs: MOMENTS.length,
  seconds: 90,
  experiments: (options) => [experiment(options)],
};
