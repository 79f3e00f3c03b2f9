// SPDX-License-Identifier: MIT
// What a suite is, and the words that several of them share.
import type { Bed } from './bed.ts';
import type { Experiment } from './experiment.ts';
import type { Variant } from './record.ts';

export interface SuiteOptions {
  readonly bed: Bed;
  /** GPU memory of the workload, MiB; absent: the suite's own choice. */
  readonly memoryMib?: number | undefined;
}

export interface Suite {
  readonly name: string;
  /** One line for `--help`. */
  readonly summary: string;
  /** Runs of each variant, unless --runs says otherwise. */
  readonly runs: number;
  /** Seconds that it takes on a GPU with these runs, for --budget's shares. */
  readonly seconds: number;
  /** Why it cannot run here; undefined: it can. */
  readonly unfit?: (bed: Bed) => Promise<string | undefined> | string | undefined;
  readonly experiments: (options: SuiteOptions) => readonly Experiment[];
}

/** The guide's two rows. */
export const WAYS: readonly [Variant, Variant] = [
  { name: 'stock', label: 'Without context pool' },
  { name: 'pool', label: 'With context pool' },
];
