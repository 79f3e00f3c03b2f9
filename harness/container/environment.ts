// SPDX-License-Identifier: MIT
// What CRIU, its plugin and what they execute get in their environment, from the user's and from the command's options.
import { existsSync } from 'node:fs';
import { usageError } from '../errors.ts';
import { built } from '../paths.ts';
import type { CriuChoice } from './criu-tree.ts';

export interface PluginOptions {
  /** CRIU_CUDA_CONTEXT_POOL; default: as the environment says, else on. */
  readonly pool?: boolean | undefined;
  readonly parallel?: boolean | undefined;
  readonly streams?: number | undefined;
  readonly chunkMb?: number | undefined;
  /** CUDAPOOL_HOT. */
  readonly hot?: string | undefined;
  /** CUDAPOOL_SYNC. */
  readonly sync?: boolean | undefined;
  /** Comes last: wins over everything. */
  readonly env?: Readonly<Record<string, string>> | undefined;
}

/** The user's variables that mean something to CRIU, the pool, or the driver. */
const PASSED = /^(CRIU_|CUDAPOOL_|SOFTCUDA_|CUDA_|NVIDIA_|LD_LIBRARY_PATH$)/;

export function wantsPool({ pool, env }: PluginOptions): boolean {
  const set = env?.CRIU_CUDA_CONTEXT_POOL ?? (pool === undefined ? process.env.CRIU_CUDA_CONTEXT_POOL : undefined);
  if (set === undefined || set === '') return pool ?? true;
  if (set === '0' || set === '1') return set === '1';
  throw usageError(`CRIU_CUDA_CONTEXT_POOL is '${set}'`, 'it is 1 or 0, or unset it');
}

export function pluginEnvironment(criu: CriuChoice, options: PluginOptions): Record<string, string> {
  const result: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env)) {
    if (value !== undefined && PASSED.test(name)) result[name] = value;
  }
  result.CRIU_LIBS_DIR = criu.plugins;
  if (result.CUDAPOOL_DAEMON === undefined && existsSync(built.cudapoold)) result.CUDAPOOL_DAEMON = built.cudapoold;
  const { parallel, streams, chunkMb, hot, sync, env } = options;
  if (parallel !== undefined) result.CRIU_CUDA_PARALLEL_RESTORE = parallel ? '1' : '0';
  if (streams !== undefined) result.CRIU_CUDA_STREAMS = String(streams);
  if (chunkMb !== undefined) result.CRIU_CUDA_CHUNK_MB = String(chunkMb);
  if (hot !== undefined) result.CUDAPOOL_HOT = hot;
  if (sync !== undefined) result.CUDAPOOL_SYNC = sync ? '1' : '0';
  result.CRIU_CUDA_CONTEXT_POOL = wantsPool(options) ? '1' : '0';
  return { ...result, ...env };
}
