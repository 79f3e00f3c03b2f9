// SPDX-License-Identifier: MIT
// strip(1) and ldd(1): programs made small, and the libraries that they load.
import { CudapoolError } from '../errors.ts';
import { exec, look } from './exec.ts';

/** A copy of an executable without its symbols. */
export async function strip(from: string, to: string): Promise<void> {
  await exec('strip', ['-o', to, from], { timeoutMs: 60_000, package: 'binutils' });
}

/** The absolute paths of the shared libraries that the loader gives a program, the loader itself left out. */
export async function librariesOf(program: string): Promise<string[]> {
  const { stdout, stderr } = await look('ldd', [program], { reject: false });
  if (/not a dynamic executable|statically linked/.test(stdout + stderr)) return [];
  const missing = [...stdout.matchAll(/^\s*(\S+) => not found$/gm)].map((match) => match[1]);
  if (missing.length > 0) {
    throw new CudapoolError(
      'ERR_CUDAPOOL_LIBRARY',
      `${program} needs ${missing.join(', ')}, which is not installed here`,
      {
        hint: 'cudapool setup installs what CRIU and podman need',
      },
    );
  }
  return [...stdout.matchAll(/^\s*\S+ => (\/\S+) \(0x[0-9a-f]+\)$/gm)].map((match) => match[1] as string);
}
