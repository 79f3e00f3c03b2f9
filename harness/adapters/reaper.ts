// SPDX-License-Identifier: MIT
// workloads/reaper: a command whose orphans are reaped at once, so that a restored process's id is free as soon as it ends.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { CudapoolError } from '../errors.ts';
import { built } from '../paths.ts';
import { cancelSignal, interrupted, quote } from './exec.ts';

export interface Reaped {
  readonly command: string;
  readonly exitCode: number;
  readonly stderr: string;
  /** performance.now() just before the start. */
  readonly started_ms: number;
  readonly wall_ms: number;
}

const MAX_OUTPUT = 1 << 16;

/** Runs a command to its end; what it leaves behind is reaped when it ends, however much later that is. */
export async function execReaped(
  file: string,
  args: readonly string[],
  options: { readonly env: Readonly<Record<string, string | undefined>>; readonly timeoutMs: number },
): Promise<Reaped> {
  if (cancelSignal().aborted) throw interrupted();
  const command = quote([file, ...args]);
  const started_ms = performance.now();
  const child = spawn(join(built.workloads, 'reaper'), [file, ...args], {
    env: { ...process.env, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true, // a group of its own, which ends as a whole when it is too slow
  });
  let stdout = '';
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => {
    stderr = (stderr + chunk.toString()).slice(-MAX_OUTPUT);
  });
  try {
    const exitCode = await new Promise<number>((resolve, reject) => {
      const kill = (error: CudapoolError): void => {
        try {
          if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
        } catch {
          // it has ended meanwhile
        }
        reject(error);
      };
      const timer = setTimeout(
        () =>
          kill(new CudapoolError('ERR_CUDAPOOL_TIMEOUT', `${file} did not end within ${options.timeoutMs / 1000} s`)),
        options.timeoutMs,
      );
      const onAbort = (): void => kill(interrupted());
      cancelSignal().addEventListener('abort', onAbort, { once: true });
      const settle = (): void => {
        clearTimeout(timer);
        cancelSignal().removeEventListener('abort', onAbort);
      };
      child.stdout.on('data', (chunk: Buffer) => {
        stdout = (stdout + chunk.toString()).slice(-MAX_OUTPUT);
        const code = /^end (\d+)$/m.exec(stdout)?.[1];
        if (code === undefined) return;
        settle();
        resolve(Number(code));
      });
      const failed = (cause?: unknown): void => {
        settle();
        reject(
          new CudapoolError('ERR_CUDAPOOL_COMMAND', `${command} could not be run: ${stderr.trim()}`, {
            cause,
            hint: 'cudapool setup',
          }),
        );
      };
      child.once('error', failed);
      child.once('close', () => failed());
    });
    return { command, exitCode, stderr, started_ms, wall_ms: performance.now() - started_ms };
  } finally {
    // What runs on is no reason for this process to wait.
    child.stdout.destroy();
    child.stderr.destroy();
    child.unref();
  }
}
