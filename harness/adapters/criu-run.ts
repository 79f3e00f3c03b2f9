// SPDX-License-Identifier: MIT
// CRIU by itself, without podman: dumps and restores a process tree.
import { join } from 'node:path';
import { CudapoolError } from '../errors.ts';
import { messageOf, readCriuLog } from './criu-log.ts';
import { execReaped, type Reaped } from './reaper.ts';

export interface CriuRun {
  readonly binary: string;
  /** The folder with the cuda_plugin.so that it loads. */
  readonly plugins: string;
  /** For CRIU, its plugin, and what they execute. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Holds the images and the logs. */
  readonly images: string;
  readonly timeoutMs: number;
}

const LOG = { dump: 'dump.log', restore: 'restore.log' } as const;

export const criuLogFile = (run: CriuRun, action: keyof typeof LOG): string => join(run.images, LOG[action]);

async function criu(run: CriuRun, action: keyof typeof LOG, args: readonly string[]): Promise<Reaped> {
  const common = ['--no-default-config', '--images-dir', run.images, '--libdir', run.plugins, '--network-lock', 'skip'];
  const log = ['--log-file', LOG[action], '-v4'];
  const result = await execReaped(run.binary, [action, ...common, ...log, ...args], run);
  if (result.exitCode === 0) return result;
  const { errors, tail } = readCriuLog(criuLogFile(run, action));
  throw new CudapoolError('ERR_CUDAPOOL_CRIU', `criu ${action} failed (exit code ${result.exitCode})`, {
    lines: (errors.length > 0 ? errors : tail).slice(-8).map(messageOf),
    hint: `all of it is in ${criuLogFile(run, action)}; the command was: ${result.command}`,
  });
}

/** Dumps the tree below `pid`, and ends it. */
export const criuDump = (run: CriuRun, pid: number): Promise<Reaped> => criu(run, 'dump', ['--tree', String(pid)]);

/** Restores it; returns when CRIU has ended and the tree runs by itself. */
export const criuRestore = (run: CriuRun): Promise<Reaped> => criu(run, 'restore', ['--restore-detached']);
