// SPDX-License-Identifier: MIT
// strip(1), ldd(1) and ldconfig(8): programs made small, and the libraries that they load.
import { unfitError } from '../errors.ts';
import { exec, look } from './exec.ts';

/** A copy of an executable without its symbols. */
export async function strip(from: string, to: string): Promise<void> {
  await exec('strip', ['-o', to, from], { timeoutMs: 60_000, package: 'binutils' });
}

/** The absolute paths of what the loader would load for a program or library, and its own; none where it loads nothing. */
export async function librariesOf(program: string): Promise<string[]> {
  const { stdout } = await look('ldd', [program], { reject: false, env: { LC_ALL: 'C' } });
  const missing = [...stdout.matchAll(/^\s*(\S+) => not found$/gm)].map((match) => match[1]);
  if (missing.length > 0) {
    throw unfitError(
      'ERR_CUDAPOOL_LIBRARY_MISSING',
      `${program} needs ${missing.join(', ')}, which is not installed`,
      `ldd ${program} lists what it needs; cudapool setup installs what CRIU and podman do`,
    );
  }
  return [...stdout.matchAll(/^\s*(?:\S+ => )?(\/\S+) \(0x[0-9a-f]+\)$/gm)].map((match) => match[1] as string);
}

/** The libraries of 64-bit x86 programs in the loader's cache: names and paths. */
export async function cachedLibraries(): Promise<{ name: string; path: string }[]> {
  const { stdout } = await look('ldconfig', ['-p'], { reject: false, env: { LC_ALL: 'C' } });
  return [...stdout.matchAll(/^\s*(\S+) \([^)]*x86-64[^)]*\) => (\S+)$/gm)].map(([, name, path]) => ({
    name: name ?? '',
    path: path ?? '',
  }));
}
