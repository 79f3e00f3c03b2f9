// SPDX-License-Identifier: MIT
// The pool as a process: started for a restore where there is none, or kept by a test or a benchmark as its own.
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { daemonOf, type PoolPlace, poolState, startPool } from '../adapters/cudapoold.ts';
import { cancelSignal, interrupted, lastLines } from '../adapters/exec.ts';
import { CudapoolError } from '../errors.ts';

const START_MS = 20_000;
/** A pool that was started for one restore ends by itself; as one that the plugin starts (CUDAPOOL_SPAWN_IDLE_S in wire/spawn.h). */
export const IDLE_S = 600;

/** Starts a pool if there is none. */
export async function ensurePool(place: PoolPlace): Promise<void> {
  const state = await poolState(place);
  if (!state.running && state.absent) await startPool(place, { idleS: IDLE_S });
}

/** The pool's report; undefined if there is none. */
export async function poolReport(place: PoolPlace): Promise<Record<string, unknown> | undefined> {
  const state = await poolState(place);
  return state.running ? state.status : undefined;
}

/** A pool in the foreground, whose end this process sees. */
export interface OwnPool {
  readonly pid: number;
  readonly log: string;
  readonly child: ChildProcess;
  /** Ends it and waits until it has. */
  stop(signal?: NodeJS.Signals): Promise<void>;
}

const gone = (child: ChildProcess): boolean => child.exitCode !== null || child.signalCode !== null;

async function workerState(place: PoolPlace): Promise<unknown> {
  const worker = (await poolReport(place))?.worker;
  return typeof worker === 'object' && worker !== null && 'state' in worker ? worker.state : undefined;
}

export interface OwnPoolOptions extends PoolPlace {
  readonly socket: string;
  readonly log: string;
  readonly args?: readonly string[];
}

/** Returns when the worker's driver is warm. */
export async function startOwnPool(options: OwnPoolOptions): Promise<OwnPool> {
  const { socket, env, args = [] } = options;
  mkdirSync(dirname(socket), { recursive: true });
  const log = openSync(options.log, 'a');
  const child = spawn(daemonOf(options), ['--socket', socket, '--foreground', ...args], {
    stdio: ['ignore', log, log],
    env: { ...process.env, ...env },
  });
  closeSync(log);
  let spawnError: Error | undefined;
  child.once('error', (error) => {
    spawnError = error;
  });
  const stop = async (signal: NodeJS.Signals = 'SIGTERM'): Promise<void> => {
    if (gone(child) || child.pid === undefined) return;
    const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill(signal);
    const hard = setTimeout(() => child.kill('SIGKILL'), 5000);
    await ended;
    clearTimeout(hard);
  };
  const deadline = performance.now() + START_MS;
  for (;;) {
    const state = gone(child) || spawnError !== undefined ? 'ended' : await workerState(options);
    if (state === 'warm' && child.pid !== undefined) return { pid: child.pid, log: options.log, child, stop };
    if (state === 'ended' || state === 'failed' || performance.now() > deadline || cancelSignal().aborted) {
      await stop();
      if (cancelSignal().aborted) throw interrupted();
      throw new CudapoolError(
        'ERR_CUDAPOOL_POOL_START',
        state === 'ended' ? 'the pool ended at its start' : 'the pool did not become warm',
        { cause: spawnError, lines: lastLines(readFileSync(options.log, 'utf8')) },
      );
    }
    await sleep(10);
  }
}
