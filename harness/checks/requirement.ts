// SPDX-License-Identifier: MIT
// One line of `cudapool check`: a requirement, what was found, and how to fix it.
import { statSync } from 'node:fs';
import { bytes } from '../output.ts';

/** bad: the machine is not fit. note: it works, and could be better. skip: it could not be looked at. */
export type Status = 'ok' | 'note' | 'bad' | 'skip';

export interface Finding {
  status: Status;
  found: string;
  /** What to do about it: a command where there is one. Always there when the status is 'bad'. */
  fix?: string;
}

export interface CheckContext {
  /** The CRIU tree to look at: the user's, or the one that `cudapool build` makes. */
  criuTree: string;
  /** Without a GPU: what only a GPU needs is left out. */
  software: boolean;
}

export interface Requirement {
  id: string;
  /** What is required, in a few words. */
  title: string;
  group: 'machine' | 'GPU' | 'CRIU' | 'containers' | 'cudapool';
  /** Left out with --software. */
  gpuOnly?: boolean;
  look(context: CheckContext): Promise<Finding> | Finding;
}

export const ok = (found: string): Finding => ({ status: 'ok', found });
export const note = (found: string, fix?: string): Finding => ({
  status: 'note',
  found,
  ...(fix !== undefined && { fix }),
});
export const bad = (found: string, fix: string): Finding => ({ status: 'bad', found, fix });
export const skip = (found: string): Finding => ({ status: 'skip', found });

/** '6.1 MiB'; undefined where there is no such file. */
export function sizeOf(path: string): string | undefined {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat === undefined ? undefined : bytes(stat.size);
}
