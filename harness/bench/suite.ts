// SPDX-License-Identifier: MIT
// What a suite is, and the words that several of them share.
import type { Bed } from './bed.ts';
import type { Experiment } from './experiment.ts';
import type { Variant } from './record.ts';

/** What the user asked of the suites; absent: each one's own choice. */
export interface Asked {
  /** GPU memory of the workload, MiB. */
  readonly memoryMib?: number | undefined;
  /** For suites about several sizes: those, GiB. */
  readonly gib?: readonly number[] | undefined;
  /** Of a suite that has cases by name: these. */
  readonly only?: readonly string[] | undefined;
  /** For suites that compare ways back: these, and the runs of each where it is not the others' number. */
  readonly ways?: Readonly<Record<string, number | undefined>> | undefined;
  /** For suites that measure for a time: so long. */
  readonly seconds?: number | undefined;
}

export interface SuiteOptions extends Asked {
  readonly bed: Bed;
}

export interface Suite {
  readonly name: string;
  /** One line for `--help`. */
  readonly summary: string;
  /** Runs of each variant, unless --runs says otherwise. */
  readonly runs: number;
  /** Runs before those that count; default 1. */
  readonly warmup?: number;
  /** Runs of some variants, where they are others. */
  readonly runsOf?: Readonly<Record<string, number>>;
  /** It compares ways back, and --ways chooses from them. */
  readonly ways?: true;
  /** Seconds that it takes on a GPU with these runs, about: for --budget and for the plan. */
  readonly seconds: number | ((asked: Asked & { readonly runs?: number | undefined }) => number);
  /** Why it cannot run here; undefined: it can. */
  readonly unfit?: (bed: Bed) => Promise<string | undefined> | string | undefined;
  /** Why one of its experiments, named by its case, cannot run here, though others can. */
  readonly leaveOut?: (options: SuiteOptions, name: string | undefined) => Promise<string | undefined>;
  readonly experiments: (options: SuiteOptions) => readonly Experiment[];
}

/** The guide's two rows. */
export const WAYS: readonly [Variant, Variant] = [
  { name: 'stock', label: 'Without context pool' },
  { name: 'pool', label: 'With context pool' },
];

/** About how long it takes on a GPU. */
export const secondsOf = (suite: Suite, asked: Asked & { readonly runs?: number | undefined }): number =>
  Math.ceil(
    typeof suite.seconds === 'function'
      ? suite.seconds(asked)
      : (suite.seconds * (asked.runs ?? suite.runs)) / suite.runs,
  );

/** Which of these fit into so many seconds, one after another; the first one always does: runs are left out then. */
export function fitting<T>(wanted: readonly T[], secondsOfEach: (each: T) => number, budgetS: number): Set<T> {
  const chosen = new Set<T>();
  let left = budgetS;
  for (const each of wanted) {
    const takes = secondsOfEach(each);
    if (takes > left && chosen.size > 0) continue;
    chosen.add(each);
    left -= takes;
  }
  return chosen;
}
