// SPDX-License-Identifier: MIT
// What the shim costs while nothing is parked: the Llama's steps, the rate of small launches, and calls that the gate holds.
import * as v from 'valibot';
import { type Player, startPlayer } from '../../adapters/turns.ts';
import { CudapoolError, usageError } from '../../errors.ts';
import { built, inRoot } from '../../paths.ts';
import type { Bed } from '../bed.ts';
import type { Experiment, Outcome } from '../experiment.ts';
import { balancedRound } from '../order.ts';
import type { Metric, Target } from '../record.ts';
import { sideBySide } from '../stats.ts';
import type { Suite, SuiteOptions } from '../suite.ts';
import { needsTorch } from './llama.ts';

/** One of the three that take turns. */
interface Side {
  readonly name: string;
  readonly label: string;
  /** The process that does its turns; sides of the same share it. */
  readonly process: string;
  /** What its process has preloaded. */
  readonly preload?: string;
  /** Its calls go past the shim of its process (workloads/two_ways.h). */
  readonly past?: boolean;
}

const TWO_WAYS = { process: 'two-ways', preload: `${built.twoWays}:${built.shim}` };
interface Comparison {
  /** The baseline; what is compared with it; the first once more: what differs from that cannot be told from nothing. */
  readonly sides: readonly [Side, Side, Side];
  /** What the second one's figure is of the first's. */
  readonly ratio: string;
}
const APART: Comparison = {
  sides: [
    { name: 'without', label: 'without the shim', process: 'without' },
    { name: 'with', label: 'with the shim', process: 'with', preload: built.shim },
    { name: 'again', label: 'without the shim, once more', process: 'again' },
  ],
  ratio: 'with the shim, of without',
};
const WITHIN: Comparison = {
  sides: [
    { name: 'past', label: 'past the shim', ...TWO_WAYS, past: true },
    { name: 'through', label: 'through the shim', ...TWO_WAYS },
    { name: 'again', label: 'past the shim, once more', ...TWO_WAYS, past: true },
  ],
  ratio: 'through the shim, of past it',
};
/** At the end of a line: those who go past the shim are told apart, so that each takes the same steps. */
const way = ({ name, past = false }: Side): string => (past ? ` ${name}` : '');

/** Seconds of --seconds; starting the Llamas, twice, takes about so long besides. */
const SECONDS = 90;
const START_SECONDS = 40;
/** Rounds are added until the time ends; --runs can end them before. */
const ROUNDS_MOST = 10_000;

const envOf = (bed: Bed, preload?: string): Record<string, string | undefined> => ({
  ...bed.env,
  SOFTCUDA_COSTS: '', // what the driver spends must not hide what the shim does
  LD_PRELOAD: preload,
  PYTHONHASHSEED: '0',
});

const paired = (
  { sides: [baseline, ours, control] }: Comparison,
  what: string,
  metric: string,
  by: 'ratio' | 'difference',
  max: number,
): Target => ({
  kind: 'paired',
  what,
  metric,
  variant: ours.name,
  baseline: baseline.name,
  control: control.name,
  by,
  max,
});

/** One figure of a round: each side's process is told its line so many times, in turn. */
interface Slices {
  readonly metric: Metric;
  readonly line: string;
  readonly count: number;
}

interface Turns {
  readonly name: string;
  readonly title: string;
  readonly seconds: number;
  readonly compared: Comparison;
  readonly slices: readonly Slices[];
  readonly targets: readonly Target[];
  readonly command: readonly string[];
  readonly readyMs: number;
  /** So many groups of processes live at once, one process for each that the sides name; a round is one group's. */
  readonly abreast: number;
  /** New processes after so many rounds of each group; absent: never. */
  readonly roundsEach?: number;
}

const TURN_MS = 60_000;
const Answer = v.object({
  value: v.pipe(v.number(), v.finite(), v.gtValue(0)),
  wrong: v.optional(v.number(), 0),
});

/** What one round came to, for each variant. */
type Round = Readonly<Record<string, Outcome>>;

/** Each slice is a few milliseconds, or a step, of each of the three: what disturbs the machine for longer disturbs all alike. */
async function playRound(
  { compared: { sides }, slices }: Turns,
  players: ReadonlyMap<string, Player>,
  round: number,
): Promise<Round> {
  const values = new Map(sides.map(({ name }) => [name, {} as Record<string, number>]));
  const wrong = new Set<string>();
  for (const { metric, line, count } of slices) {
    const taken: number[][] = [];
    for (let i = 0; i < count; i++) {
      const slice = new Map<string, number>();
      for (const side of balancedRound(sides, round * count + i)) {
        const player = players.get(side.process) as Player;
        const answer = v.parse(Answer, await player.turn(line + way(side), TURN_MS));
        slice.set(side.name, answer.value);
        if (answer.wrong > 0) wrong.add(side.name);
      }
      taken.push(sides.map(({ name }) => slice.get(name) as number));
    }
    for (const [i, value] of sideBySide(taken).entries())
      (values.get(sides[i]?.name as string) as Record<string, number>)[metric.name] = value;
  }
  return Object.fromEntries(
    [...values].map(([name, its]) => [name, { verified: !wrong.has(name), values: its } satisfies Outcome]),
  );
}

/**
 * The processes of all sides, all of them alive at once, which take turns: what each has to do once, to load a model for instance,
 * is done once, and what a slice takes is compared with those right before and after it. One at a time computes. A round is
 * played at its first run, of all sides; the others report what they came to in it.
 */
function turns(bed: Bed, what: Turns): Experiment {
  const { sides } = what.compared;
  const processes = new Map(sides.map(({ process, preload }) => [process, preload]));
  const variants = sides.map(({ name, label }) => ({ name, label }));
  let groups: ReadonlyMap<string, Player>[] = [];
  let startedGroups = 0;
  let rounds = 0;
  let ofThese = 0;
  let playing: Promise<Round> | undefined;

  async function start(): Promise<void> {
    const fresh = Array.from({ length: what.abreast }, () => new Map<string, Player>());
    groups = fresh;
    const started = await Promise.allSettled(
      fresh.flatMap((group) =>
        [...processes].map(async ([process, preload]) => {
          group.set(process, await startPlayer(what.command, { env: envOf(bed, preload), readyMs: what.readyMs }));
        }),
      ),
    );
    const failed = started.find((each) => each.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }
  async function end(): Promise<void> {
    const all = groups.flatMap((group) => [...group.values()]);
    groups = [];
    await Promise.all(all.map((player) => player.end()));
  }
  async function renewed(): Promise<void> {
    if (what.roundsEach === undefined || ofThese < what.roundsEach * what.abreast) return;
    await end();
    await start();
    startedGroups += what.abreast;
    ofThese = 0;
  }
  function play(): Promise<Round> {
    const at = ofThese % what.abreast;
    const group = startedGroups + at;
    const round = Math.floor(rounds / what.abreast);
    rounds += 1;
    ofThese += 1;
    const players = groups[at];
    if (players?.size !== processes.size)
      throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', 'its processes could not be started again');
    return playRound(what, players, round).then((outcomes) =>
      Object.fromEntries(Object.entries(outcomes).map(([name, its]) => [name, { ...its, notes: { group } }])),
    );
  }

  return {
    suite: 'steady',
    case: what.name,
    title: what.title,
    setup: {
      ...Object.fromEntries(what.slices.map(({ metric, line, count }) => [metric.name, `${count} times '${line}'`])),
      abreast: what.abreast,
      seconds: what.seconds,
    },
    variants,
    metrics: what.slices.map(({ metric }) => metric),
    targets: what.targets,
    seconds: what.seconds,
    roundOf: (all) => [...all],
    begin: async () => {
      await bed.pool.on(); // a warm driver: they start faster
      await start();
    },
    run: async (variant, order) => {
      if ((order - 1) % variants.length === 0) playing = renewed().then(play);
      return (await playing)?.[variant] as Outcome;
    },
    finish: async () => {
      await end();
      await bed.pool.off();
    },
  };
}

const nsName = (call: string, threads: number): string => `${call}_${threads}_ns`;
/**
 * What 16 threads submit at once is not among them: its time is that of the driver's own lock, which differs from process to
 * process by far more than the gate adds. The last two do not take it, and show the gate by itself.
 */
const CALLS = [
  { call: 'launch', threads: [1], label: 'a small kernel', ms: 4, slices: 6 },
  { call: 'record', threads: [1], label: 'cuEventRecord (held by the gate)', ms: 2, slices: 6 },
  { call: 'free_host', threads: [1, 16], label: 'cuMemFreeHost of nothing (held)', ms: 2, slices: 6 },
  { call: 'get_current', threads: [1, 16], label: 'cuCtxGetCurrent (intercepted, not held)', ms: 2, slices: 6 },
] as const;
const CASES = CALLS.flatMap(({ call, threads, label, ms, slices }) =>
  threads.map((n) => ({
    call,
    metric: { name: nsName(call, n), unit: 'ns', label: `${label}, ${n} thread${n === 1 ? '' : 's'}` },
    line: `${call} ${n} ${ms}`,
    count: slices,
  })),
);

const CALL_RATE = {
  command: [`${built.workloads}/call_rate`],
  readyMs: 60_000,
  // Where a process's code, stacks and queues come to lie makes calls faster or slower: no such place plays two rounds.
  abreast: 6,
  roundsEach: 1,
} as const;

const calls = ({ bed }: SuiteOptions, seconds: number): Experiment =>
  turns(bed, {
    name: 'calls',
    title: 'Driver calls with the shim and without, by processes that take turns of a few ms: nanoseconds a call.',
    seconds,
    compared: APART,
    slices: CASES,
    // Not of the launch, which differs from process to process by 11 % on an H200: it is judged within processes.
    targets: CASES.filter(({ call }) => call !== 'launch').map(({ metric: { name, label } }) =>
      paired(APART, `${label}: added by the shim, ns`, name, 'difference', 10),
    ),
    ...CALL_RATE,
  });

const launches = ({ bed }: SuiteOptions, seconds: number): Experiment => {
  const metric = { name: nsName('launch', 1), unit: 'ns', label: 'a small kernel, 1 thread' };
  return turns(bed, {
    name: 'launches',
    title: 'Small launches through the shim and past it, in turns of a few ms of one process: nanoseconds a launch.',
    seconds,
    compared: WITHIN,
    slices: [{ metric, line: 'launch 1 4', count: 36 }],
    targets: [paired(WITHIN, `${metric.label}: ${WITHIN.ratio}`, metric.name, 'ratio', 1.01)],
    ...CALL_RATE,
  });
};

/** A program whose steps are compared. */
interface Stepped {
  readonly name: string;
  readonly title: string;
  readonly program: readonly string[];
  readonly compared: Comparison;
  readonly abreast: number;
  readonly kinds: readonly {
    readonly metric: string;
    readonly label: string;
    readonly line: string;
    readonly count: number;
    readonly judged: boolean;
  }[];
}

const steps = (
  { bed }: SuiteOptions,
  seconds: number,
  { name, title, program, compared, abreast, kinds }: Stepped,
): Experiment =>
  turns(bed, {
    name,
    title,
    seconds,
    compared,
    slices: kinds.map(({ metric, label, line, count }) => ({
      metric: { name: metric, unit: 'ms', label },
      line,
      count,
    })),
    targets: kinds
      .filter(({ judged }) => judged)
      .map(({ metric, label }) => paired(compared, `${label}: ${compared.ratio}`, metric, 'ratio', 1.01)),
    command: ['python3', ...program, '--dir', bed.scratch],
    readyMs: 240_000,
    abreast,
  });

const LLAMA = [inRoot('workloads', 'llama.py'), '--turns'];
const TOKEN = { metric: 'token_ms', label: 'a token (Python decides)', line: 'token 1', judged: false };
/** Tokens one by one are decided by Python, which submits them; long prompts by the GPU. */
const llama: readonly Stepped[] = [
  {
    name: 'tokens',
    title: "PyTorch's Llama, its driver calls through the shim and past it, in turns of one token of one process.",
    program: LLAMA,
    compared: WITHIN,
    abreast: 3,
    kinds: [{ ...TOKEN, count: 36, judged: true }],
  },
  {
    name: 'llama',
    title: "PyTorch's Llama with the shim and without, by processes that take turns: a token, a batch of long prompts.",
    program: LLAMA,
    compared: APART,
    abreast: 5, // by where its memory lies a process differs from the next, though less than by the limit
    kinds: [
      { ...TOKEN, count: 12 }, // processes differ by 8 % on an H200: it is judged within one
      {
        metric: 'prompt_ms',
        label: 'four prompts of 1024 tokens (the GPU decides)',
        line: 'prompt 1',
        count: 6,
        judged: true,
      },
    ],
  },
];

const PYTHON = { program: [inRoot('workloads', 'driver_program.py')], abreast: 2 };
const COPIES = { metric: 'step_ms', label: 'a step', line: 'copies 50', count: 18, judged: true };
/** What the software driver has instead. */
const python: readonly Stepped[] = [
  {
    name: 'steps',
    title: 'A program in Python that sets and copies memory, through the shim and past it, in turns of one process.',
    compared: WITHIN,
    kinds: [COPIES],
    ...PYTHON,
  },
  {
    name: 'python',
    title: 'A program in Python that sets and copies memory, with the shim and without, by processes that take turns.',
    compared: APART,
    kinds: [COPIES],
    ...PYTHON,
  },
];

interface Part {
  readonly name: string;
  /** Of the time of all parts that are chosen. */
  readonly weight: number;
  readonly make: (options: SuiteOptions, seconds: number) => Experiment;
}

function chosen(options: SuiteOptions): Experiment[] {
  const { bed, only, seconds = SECONDS } = options;
  const parts: readonly Part[] = [
    { name: 'calls', weight: 4, make: calls },
    { name: 'launches', weight: 3, make: launches },
    ...(bed.driver === 'gpu' ? llama : python).map(
      (stepped): Part => ({
        name: stepped.name,
        weight: stepped.compared === WITHIN ? 5 : 8,
        make: (...given) => steps(...given, stepped),
      }),
    ),
  ];
  const names = parts.map(({ name }) => name);
  const strange = only?.find((name) => !names.includes(name));
  if (strange !== undefined) throw usageError(`there is no part '${strange}' here`, `choose from ${names.join(', ')}`);
  const these = parts.filter(({ name }) => only?.includes(name) ?? true);
  const all = these.reduce((sum, { weight }) => sum + weight, 0);
  return these.map(({ weight, make }) => make(options, (seconds * weight) / all));
}

export const steadySuite: Suite = {
  name: 'steady',
  summary: "the shim while nothing is parked: the Llama's step, small launches, and the gate (--seconds)",
  runs: ROUNDS_MOST,
  warmup: 0,
  seconds: ({ seconds = SECONDS }) => seconds + START_SECONDS,
  experiments: chosen,
  leaveOut: async ({ bed }, name) =>
    llama.some((stepped) => stepped.name === name) ? needsTorch(bed, 'transformers') : undefined,
};
