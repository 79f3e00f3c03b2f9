// SPDX-License-Identifier: MIT
// Restores of processes with more and more GPU memory, each way; and of one that has reserved more than it has filled.
import {
  CYCLE_METRICS,
  chooseKinds,
  cycleSeconds,
  type Kind,
  kindVariants,
  makeCycle,
  memoryStorage,
} from '../cycle.ts';
import type { Experiment } from '../experiment.ts';
import { checkAnswers } from '../processes.ts';
import { type Observations, samples, type Target } from '../record.ts';
import { growth, type SamplesAt } from '../stats.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

const KINDS: readonly Kind[] = ['stock', 'hot-move', 'hot-copy', 'staged'];
const GPU_GIB = [1, 8, 16, 32];
/** A restore of 32 GiB takes the stock way half a minute; a slope wants samples. */
const RUNS_OF: Readonly<Record<string, number>> = { stock: 1, 'hot-move': 5 };
/** What fits into a test machine's memory. */
const SOFTWARE_GIB = [1 / 32, 1 / 8, 1 / 2];
/** The size that the targets are about. */
const TARGET_GIB = 32;
const MIB = 1024;
const SEED = 1;
const READY_MS = 120_000;

const gibOf = ({ bed, gib }: SuiteOptions): readonly number[] => gib ?? (bed.driver === 'gpu' ? GPU_GIB : SOFTWARE_GIB);
const nameOf = (gib: number): string => (gib >= 1 ? `${gib}gib` : `${Math.round(gib * MIB)}mib`);

/** One allocation for each GiB: as applications do, and so that the next park can copy one after another. */
const piecesOf = (gib: number): number => Math.max(1, Math.round(gib));

function experiment(options: SuiteOptions, gib: number, before: SamplesAt[], last: boolean): Experiment {
  const memoryMib = Math.round(gib * MIB);
  const pieces = piecesOf(gib);
  const storage = memoryStorage((2.2 * gib + 0.25) * 2 ** 30);
  const cycle = makeCycle({
    bed: options.bed,
    storage,
    stockOnce: gib > 8,
    workload: { memoryMib, pieces, seed: SEED, readyMs: READY_MS },
    check: (answers, before) => checkAnswers({ memoryMib, pieces, seed: SEED }, answers, before),
  });
  const ofStock = (variant: Kind, max: number): Target => ({
    kind: 'ratio',
    what: `${variant} restore of ${nameOf(gib)}, of stock`,
    metric: 'restore_ms',
    variant,
    baseline: 'stock',
    max,
  });
  const targets: Target[] = [
    ...(gib === TARGET_GIB ? [ofStock('hot-move', 1 / 20), ofStock('staged', 1 / 10)] : []),
    ...(last
      ? [{ kind: 'fact', what: 'growth of hot-move, ms per GiB', fact: 'growth_ms_per_gib', max: 5 } as const]
      : []),
  ];
  return {
    suite: 'sizes',
    case: nameOf(gib),
    title: `A process with ${gib} GiB of GPU memory: podman's checkpoint and restore, to its first right answer.`,
    setup: { memory_mib: memoryMib, pieces, storage: storage ?? 'disk' },
    variants: kindVariants(chooseKinds(KINDS, options.ways)),
    metrics: CYCLE_METRICS,
    targets,
    prepare: (variant) => cycle.prepare(variant as Kind),
    run: (variant) => cycle.run(variant as Kind),
    facts: (seen) => growthFacts(seen, gib, before),
    finish: () => cycle.leave(),
  };
}

/** How restores by hot-move grow over all sizes so far. */
function growthFacts(seen: Observations, gib: number, before: SamplesAt[]): Record<string, number> {
  before.push({ x: gib, samples: samples(seen, 'restore_ms', 'hot-move') });
  const measured = before.filter((each) => each.samples.length > 0);
  if (measured.length < 2) return {};
  const { value, low, high } = growth(measured);
  return { growth_ms_per_gib: value, growth_ms_per_gib_low: low, growth_ms_per_gib_high: high };
}

export const sizesSuite: Suite = {
  name: 'sizes',
  summary:
    'podman restores of 1, 8, 16 and 32 GiB (--gib), stock, hot-move, hot-copy and staged (--ways); growth per GiB',
  runs: 3,
  runsOf: RUNS_OF,
  warmup: 0,
  ways: true,
  seconds: ({ gib = GPU_GIB, ways, runs }) =>
    gib.reduce(
      (sum, each) =>
        sum + cycleSeconds(each, chooseKinds(KINDS, ways), { ...(runs === undefined && RUNS_OF), ...ways }, runs ?? 3),
      0,
    ),
  experiments: (options) => {
    const list = gibOf(options);
    const measured: SamplesAt[] = [];
    return list.map((gib, i) => experiment(options, gib, measured, list.length > 1 && i === list.length - 1));
  },
};

/** What `cudapool demo` shows: one size, in the guide's words. */
export const demoSuite: Suite = {
  name: 'demo',
  summary: 'a process with GPU memory: checkpointed and restored without the pool and with it',
  runs: 3,
  warmup: 0,
  seconds: 120,
  experiments: (options) => {
    const gib = (options.memoryMib ?? (options.bed.driver === 'gpu' ? 4096 : 64)) / MIB;
    const labels: Readonly<Record<string, string>> = {
      stock: 'Without context pool',
      'hot-move': 'With pool, kept hot',
      staged: 'With pool, from image',
    };
    const variants = Object.entries(labels).map(([name, label]) => ({ name, label }));
    return [{ ...experiment(options, gib, [], false), suite: 'demo', variants, targets: [] }];
  },
};

const RESERVE_KINDS: readonly Kind[] = ['hot-move'];
const RESERVED = {
  gpu: { allocatedMib: 100 * MIB, filledMib: 40 * MIB },
  softcuda: { allocatedMib: 1000, filledMib: 400 },
};

/** An engine that reserves its cache: most of it is zero. Stock would take minutes. */
function reserved({ bed, ways }: SuiteOptions): Experiment {
  const { allocatedMib: memoryMib, filledMib } = RESERVED[bed.driver];
  const pieces = 40; // both are cut into as many
  const storage = memoryStorage((filledMib / MIB + 1) * 1.1 * 2 ** 30);
  const cycle = makeCycle({
    bed,
    storage,
    workload: { memoryMib, filledMib, pieces, seed: SEED, readyMs: READY_MS },
    check: (answers, before) => checkAnswers({ memoryMib, filledMib, pieces, seed: SEED }, answers, before),
  });
  return {
    suite: 'reserve',
    case: `${memoryMib}mib`,
    title: `${memoryMib} MiB allocated, ${filledMib} MiB of it not zero: podman's checkpoint and hot restore.`,
    setup: { memory_mib: memoryMib, filled_mib: filledMib, pieces, storage: storage ?? 'disk' },
    variants: kindVariants(chooseKinds(RESERVE_KINDS, ways)),
    metrics: CYCLE_METRICS,
    targets: [
      { kind: 'at_most', what: 'hot restore, ms', metric: 'restore_ms', variant: 'hot-move', max: 1500 },
      {
        kind: 'at_most',
        what: 'its image, MiB',
        metric: 'image_mib',
        variant: 'hot-move',
        max: filledMib * 1.01, // tables and header
      },
    ],
    prepare: (variant) => cycle.prepare(variant as Kind),
    run: (variant) => cycle.run(variant as Kind),
    finish: () => cycle.leave(),
  };
}

export const reserveSuite: Suite = {
  name: 'reserve',
  summary: '100 GiB allocated, 40 GiB of it not zero: hot restore, and the size of its image',
  runs: 3,
  warmup: 0,
  ways: true,
  seconds: 30,
  experiments: (options) => [reserved(options)],
};
