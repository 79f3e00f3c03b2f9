// SPDX-License-Identifier: MIT
// What the shim costs while nothing is parked: the Llama's steps, the rate of small launches, and calls that the gate holds.
import * as v from 'valibot';
import { type Player, startPlayer } from '../../adapters/turns.ts';
import { CudapoolError } from '../../errors.ts';
import { built, inRoot } from '../../paths.ts';
import type { Bed } from '../bed.ts';
import type { Experiment, Outcome } from '../experiment.ts';
import { BALANCED, balancedRound } from '../order.ts';
import type { Metric, Target } from '../record.ts';
import type { Suite, SuiteOptions } from '../suite.ts';
import { needsTorch } from './llama.ts';

/** The last is the first once more: what differs between those two is what cannot be told from nothing. */
const VARIANTS = [
  { name: 'without', label: 'without the shim' },
  { name: 'with', label: 'with the shim' },
  { name: 'again', label: 'without the shim, once more' },
] as const;

/** Seconds of --seconds, and how it is shared out. */
const SECONDS = 60;
const CALLS_SHARE = 0.45;
/** Rounds are added until the time ends; --runs can end them before. */
const ROUNDS_MOST = 10_000;

const envOf = (bed: Bed, variant: string): Record<string, string | undefined> => ({
  ...bed.env,
  SOFTCUDA_COSTS: '', // what the driver spends must not hide what the shim does
  LD_PRELOAD: variant === 'with' ? built.shim : undefined,
  PYTHONHASHSEED: '0',
});

const paired = (what: string, metric: string, by: 'ratio' | 'difference', max: number): Target => ({
  kind: 'paired',
  what,
  metric,
  variant: 'with',
  baseline: 'without',
  control: 'again',
  by,
  max,
});

interface Turns {
  readonly name: string;
  readonly title: string;
  readonly setup: Readonly<Record<string, string | number>>;
  readonly seconds: number;
  readonly metrics: readonly Metric[];
  readonly targets: readonly Target[];
  readonly command: readonly string[];
  readonly readyMs: number;
  /** New processes after so many rounds; absent: never. */
  readonly roundsEach?: number;
  readonly turn: (player: Player) => Promise<Outcome>;
}

/**
 * One process for each variant, all of them alive all the time, which take turns: what each has to do once, to load a model for
 * instance, is done once, and what a turn takes is compared with those right before and after it. One at a time computes.
 */
function turns(bed: Bed, what: Turns): Experiment {
  const players = new Map<string, Player>();
  let group = 0;
  let inGroup = 0;

  async function start(): Promise<void> {
    const started = await Promise.allSettled(
      VARIANTS.map(async ({ name }) => {
        players.set(name, await startPlayer(what.command, { env: envOf(bed, name), readyMs: what.readyMs }));
      }),
    );
    const failed = started.find((each) => each.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }
  async function end(): Promise<void> {
    const all = [...players.values()];
    players.clear();
    await Promise.all(all.map((player) => player.end()));
  }

  return {
    suite: 'steady',
    case: what.name,
    title: what.title,
    setup: { ...what.setup, seconds: what.seconds },
    variants: VARIANTS,
    metrics: what.metrics,
    targets: what.targets,
    seconds: what.seconds,
    roundOf: balancedRound,
    begin: async () => {
      await bed.pool.on(); // a warm driver: they start faster
      await start();
    },
    prepare: async () => {
      if (what.roundsEach === undefined || inGroup < what.roundsEach * VARIANTS.length) return;
      await end();
      await start();
      group += 1;
      inGroup = 0;
    },
    run: async (variant) => {
      inGroup += 1;
      const player = players.get(variant);
      if (player === undefined) throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', 'its process has ended');
      const { notes, ...outcome } = await what.turn(player);
      return { ...outcome, notes: { ...notes, group } };
    },
    finish: async () => {
      await end();
      await bed.pool.off();
    },
  };
}

const nsName = (call: string, threads: number): string => `${call}_${threads}_ns`;
/** Submitting costs the driver more the more threads do it at once; the other two show the gate by itself. */
const CALLS = [
  { call: 'launch', threads: [1], label: 'a small kernel' },
  { call: 'record', threads: [1, 16], label: 'cuEventRecord (held by the gate)' },
  { call: 'free_host', threads: [1, 16], label: 'cuMemFreeHost of nothing (held)' },
  { call: 'get_current', threads: [1, 16], label: 'cuCtxGetCurrent (intercepted, not held)' },
] as const;
const CASES = CALLS.flatMap(({ call, threads, label }) =>
  threads.map((n) => ({ call, n, metric: nsName(call, n), label: `${label}, ${n} thread${n === 1 ? '' : 's'}` })),
);
const BURST_MS = 20;
const TURN_MS = 30_000;
const Burst = v.object({ ns: v.pipe(v.number(), v.finite(), v.minValue(0)) });

const calls = ({ bed, seconds = SECONDS }: SuiteOptions): Experiment =>
  turns(bed, {
    name: 'calls',
    title: 'Driver calls with the shim and without, by processes that take turns: nanoseconds a call, in bursts.',
    setup: { burst_ms: BURST_MS, rounds_each: BALANCED },
    seconds: seconds * CALLS_SHARE,
    metrics: CASES.map(({ metric, label }) => ({ name: metric, unit: 'ns', label })),
    targets: CASES.map(({ call, metric, label }) =>
      call === 'launch'
        ? paired(`${label}: with the shim, of without`, metric, 'ratio', 1.01)
        : paired(`${label}: added by the shim, ns`, metric, 'difference', 10),
    ),
    command: [`${built.workloads}/call_rate`],
    readyMs: 60_000,
    // Where a process's code and stacks come to lie makes calls faster or slower by a few ns: not one such place decides.
    roundsEach: BALANCED,
    turn: async (player) => {
      const values: Record<string, number> = {};
      for (const { call, n, metric } of CASES)
        values[metric] = v.parse(Burst, await player.turn(`${call} ${n} ${BURST_MS}`, TURN_MS)).ns;
      return { verified: true, values };
    },
  });

const Steps = v.object({
  step_ms: v.pipe(v.number(), v.finite(), v.minValue(0)),
  steps: v.number(),
  wrong: v.number(),
});
const LLAMA_MS = 400;
const DRIVER_MS = 50;

const steps = (
  bed: Bed,
  program: readonly string[],
  name: string,
  title: string,
  seconds: number,
  turnMs: number,
): Experiment =>
  turns(bed, {
    name,
    title,
    setup: { turn_ms: turnMs },
    seconds,
    metrics: [{ name: 'step_ms', unit: 'ms', label: 'a step' }],
    targets: [paired('a step with the shim, of without', 'step_ms', 'ratio', 1.01)],
    command: ['python3', ...program, '--dir', bed.scratch],
    readyMs: 240_000,
    turn: async (player) => {
      const { step_ms, steps: done, wrong } = v.parse(Steps, await player.turn(String(turnMs), 60_000));
      return { verified: wrong === 0, values: { step_ms }, notes: { steps: done } };
    },
  });

const llama = ({ bed, seconds = SECONDS }: SuiteOptions): Experiment =>
  steps(
    bed,
    [inRoot('workloads', 'llama.py'), '--turns'],
    'llama',
    "PyTorch's Llama generating eight tokens a step, with the shim and without, by processes that take turns.",
    seconds * (1 - CALLS_SHARE),
    LLAMA_MS,
  );

/** What the software driver has instead. */
const python = ({ bed, seconds = SECONDS }: SuiteOptions): Experiment =>
  steps(
    bed,
    [inRoot('workloads', 'driver_program.py')],
    'python',
    'A program in Python that sets and copies memory, with the shim and without, by processes that take turns.',
    seconds * (1 - CALLS_SHARE),
    DRIVER_MS,
  );

export const steadySuite: Suite = {
  name: 'steady',
  summary: "the shim while nothing is parked: the Llama's step, small launches, and the gate (--seconds)",
  runs: ROUNDS_MOST,
  warmup: 0,
  seconds: ({ seconds = SECONDS }) => seconds + 30,
  experiments: (options) => [calls(options), options.bed.driver === 'gpu' ? llama(options) : python(options)],
  leaveOut: async ({ bed }, name) => (name === 'llama' ? needsTorch(bed, 'transformers') : undefined),
};
