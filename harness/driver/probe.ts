// SPDX-License-Identifier: MIT
// A child process: asks the driver library, or times it once, and prints one JSON document. Its arguments: MODE LIBRARY.
import { type CudaFailure, type Driver, openDriver } from './libcuda.ts';

export interface DriverFacts {
  library: string;
  /** Why there is no usable driver; absent if there is one. */
  problem?: string;
  /** cuDriverGetVersion: 13000 is 13.0. */
  version?: number;
  devices?: { name: string; uuid: string; memory_bytes: string }[];
}

/** One process's first steps with the driver. */
export interface DriverTimes {
  /** cuInit: cold unless another process has the driver open. */
  cuinit_ms: number;
  /** The primary context's creation. */
  context_ms: number;
  /** Retaining it once more, as an application does that finds it warm. */
  retain_again_ms: number;
}

export interface DriverMemory {
  /** Of the first device's memory, by all processes; the asker's own context is in it, the same each time. */
  used_bytes: number;
}

function facts(library: string): DriverFacts {
  let driver: Driver;
  try {
    driver = openDriver(library);
  } catch (thrown) {
    return { library, problem: `cannot be loaded: ${thrown instanceof Error ? thrown.message : String(thrown)}` };
  }
  const found: DriverFacts = { library };
  try {
    found.version = driver.version();
    driver.init();
    found.devices = Array.from({ length: driver.deviceCount() }, (_, ordinal) => {
      const device = driver.device(ordinal);
      return {
        name: driver.deviceName(device),
        uuid: driver.deviceUuid(device),
        memory_bytes: driver.totalMemory(device).toString(),
      };
    });
  } catch (thrown) {
    const { call, result } = thrown as CudaFailure;
    found.problem = call === undefined ? String(thrown) : `${call} failed with error ${result}`;
  }
  return found;
}

function times(library: string): DriverTimes {
  const driver = openDriver(library);
  const timed = (work: () => void): number => {
    const started = performance.now();
    work();
    return performance.now() - started;
  };
  const cuinit_ms = timed(() => driver.init());
  const device = driver.device(0);
  const context_ms = timed(() => driver.primaryRetain(device));
  const retain_again_ms = timed(() => driver.primaryRetain(device));
  driver.primaryRelease(device);
  driver.primaryRelease(device);
  return { cuinit_ms, context_ms, retain_again_ms };
}

function memory(library: string): DriverMemory {
  const driver = openDriver(library);
  driver.init();
  return { used_bytes: Number(driver.usedMemory(driver.device(0))) };
}

const work = { facts, times, memory };
const [mode = 'facts', library = 'libcuda.so.1'] = process.argv.slice(2);
process.stdout.write(`${JSON.stringify(work[mode as keyof typeof work](library))}\n`);
