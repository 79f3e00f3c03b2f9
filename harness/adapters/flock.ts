// SPDX-License-Identifier: MIT
// flock(1): one command at a time does a piece of set-up. The kernel drops the lock of a command that dies.
import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { CudapoolError, unfitError } from '../errors.ts';
import { say } from '../output.ts';
import { cancelSignal, interrupted, which } from './exec.ts';

const WAIT_S = 900;

/** Runs `work` while no other process holds `file`. Waits 15 minutes at most, and says that it waits. */
export async function withLock<T>(file: string, work: () => Promise<T>): Promise<T> {
  mkdirSync(dirname(file), { recursive: true });
  // The holder ends when this process closes its standard input, on purpose or by dying.
  const holder = spawn('flock', ['--timeout', `${WAIT_S}`, file, 'sh', '-c', 'echo; exec cat >/dev/null'], {
    stdio: ['pipe', 'pipe', 'ignore'],
    signal: cancelSignal(),
  });
  const ended = new Promise<void>((resolve) => holder.once('close', () => resolve()));
  const patience = setTimeout(() => say(`cudapool: waiting for another command to release ${file} …`), 1000);
  try {
    await new Promise<void>((resolve, reject) => {
      holder.once('error', reject);
      holder.stdout.once('data', () => resolve());
      holder.once('exit', (status) => reject(lockError(file, status)));
    });
  } catch (thrown) {
    if (cancelSignal().aborted) throw interrupted();
    if (which('flock') === undefined) {
      throw unfitError(
        'ERR_CUDAPOOL_TOOL_MISSING',
        'flock is not installed, or not in PATH',
        'apt-get install util-linux',
        thrown,
      );
    }
    throw thrown instanceof CudapoolError ? thrown : lockError(file, null, thrown);
  } finally {
    clearTimeout(patience);
  }
  try {
    return await work();
  } finally {
    holder.stdin.end();
    await ended;
  }
}

function lockError(file: string, status: number | null, cause?: unknown): CudapoolError {
  const why = status === 1 ? `another command held it for ${WAIT_S / 60} minutes` : `flock ended with ${status}`;
  return new CudapoolError('ERR_CUDAPOOL_LOCK', `could not lock ${file}: ${why}`, {
    cause,
    hint: `see who holds it: fuser -v ${file}`,
  });
}
