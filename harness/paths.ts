// SPDX-License-Identifier: MIT
// Where things are in the project's tree, whichever of harness/ or build/harness/ this runs from.
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

function findRoot(): string {
  let dir = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(dir, 'wire', 'rules.mk'))) {
    const parent = dirname(dir);
    if (parent === dir) throw new Error('the cudapool tree is incomplete: wire/rules.mk is missing');
    dir = parent;
  }
  return dir;
}

/** The project's root folder. */
export const root = findRoot();

/** A path in the project. */
export const inRoot = (...parts: string[]): string => join(root, ...parts);

/** This project's version. */
export const version = (JSON.parse(readFileSync(inRoot('package.json'), 'utf8')) as { version: string }).version;

/** What make leaves in the rooms (`cudapool setup`). */
export const built = {
  cudapoold: inRoot('pool', 'cudapoold'),
  engineBench: inRoot('pool', 'engine-bench'),
  dropin: inRoot('pool', 'dropin', 'cuda-checkpoint'),
  shim: inRoot('preload', 'libcudapool.so'),
  softcudaLib: inRoot('softcuda', 'lib'),
  softcudaBin: inRoot('softcuda', 'bin'),
  workloads: inRoot('workloads'),
  twoWays: inRoot('workloads', 'two_ways.so'),
} as const;

/** Where `cudapool build` puts the patched CRIU of this version. */
export const criuTree = (criuVersion: string): string => inRoot('build', `criu-${criuVersion}`);

export const CRIU_VERSIONS = ['4.2.1', '4.1.1'] as const;
/** The version that commands use when none is named. */
export const CRIU_DEFAULT = CRIU_VERSIONS[0];
