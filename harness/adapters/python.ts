// SPDX-License-Identifier: MIT
// python3: what its packages are, and running a program of ours with it.
import { CudapoolError } from '../errors.ts';
import { exec, look, which } from './exec.ts';

/** Whether python3 would find this module; it is not imported. */
export async function hasModule(name: string): Promise<boolean> {
  if (which('python3') === undefined) return false;
  const script = 'import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)';
  return (await look('python3', ['-c', script, name], { reject: false })).exitCode === 0;
}

/** Runs a program that prints one JSON document. */
export async function runForJson(
  program: string,
  env: Readonly<Record<string, string | undefined>>,
  timeoutMs: number,
): Promise<unknown> {
  const { stdout } = await exec('python3', [program], { timeoutMs, env: { ...env } });
  try {
    return JSON.parse(stdout);
  } catch (cause) {
    throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', `${program} printed no JSON: ${stdout.trim().slice(0, 200)}`, {
      cause,
    });
  }
}
