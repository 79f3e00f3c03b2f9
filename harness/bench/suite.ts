// SPDX-License-Identifier: MIT
// What a suite is, and the words that several of them share.
import type { Bed } from './bed.ts';
import type { Experiment } from './experiment.ts';
import type { Variant } from './record.ts';

export interface SuiteOptions {
  readonly bed: Bed;
  /** GPU memory of the workload, MiB; absent: the suite's own choice. */
  readonly memoryMib?: number | undefined;
  /** For suites about several sizes: those, GiB; absent: the suite's own choice. */
  readonly gib?: readonly number[] | undefined;
  /** Of a suite that has cases by name: these. */
  readonly only?: readonly string[] | undefined;
}

export interface Suite {
  readonly name: string;
  /** One line for `--help`. */
  readonly summary: string;
  /** Runs of each variant, unless --runs says otherwise. */
  readonly runs: number;
  /** Runs before those that count; default 1. */
  readonly warmup?: number;
  /** Seconds that it takes on a GPU with these runs, for --budget's shares. */
  readonly seconds: number;
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
