// SPDX-License-Identifier: MIT
// What the driver library says of itself, asked in a child process, so that nothing it does can hurt the caller.
import { exec } from '../adapters/exec.ts';
import { CudapoolError } from '../errors.ts';
import { inRoot } from '../paths.ts';
import type { DriverFacts, DriverMemory, DriverTimes } from './probe.ts';

export type { DriverFacts, DriverMemory, DriverTimes } from './probe.ts';

export interface ProbeOptions {
  /** What dlopen is given. Default: libcuda.so.1. */
  library?: string;
  /** For the child: LD_LIBRARY_PATH and SOFTCUDA_* with the software driver, LD_PRELOAD to go through the shim. */
  env?: Record<string, string | undefined>;
}

async function probe(
  mode: 'facts' | 'times' | 'memory',
  { library = 'libcuda.so.1', env = {} }: ProbeOptions,
): Promise<unknown> {
  const script = inRoot('build', 'harness', 'driver', 'probe.js');
  const { stdout } = await exec(process.execPath, [script, mode, library], { timeoutMs: 60_000, readOnly: true, env });
  try {
    return JSON.parse(stdout);
  } catch (cause) {
    throw new CudapoolError('ERR_CUDAPOOL_PROBE', `asking ${library} gave no answer`, {
      cause,
      hint: 'run `cudapool check`: it says what is wrong with the driver',
    });
  }
}

/** Version and devices; a driver that cannot be used is described in `problem`, not thrown. */
export const driverFacts = async (options: ProbeOptions = {}): Promise<DriverFacts> =>
  (await probe('facts', options)) as DriverFacts;

/** How long a new process's first calls take, once. */
export const driverTimes = async (options: ProbeOptions = {}): Promise<DriverTimes> =>
  (await probe('times', options)) as DriverTimes;

/** How much of the first device's memory is in use by all processes together, as its driver says. */
export const driverMemory = async (options: ProbeOptions = {}): Promise<DriverMemory> =>
  (await probe('memory', options)) as DriverMemory;
