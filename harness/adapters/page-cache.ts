// SPDX-License-Identifier: MIT
// workloads/page_cache: what of a file is in the page cache, out of it for certain, and how fast its disk gives it.
import { join } from 'node:path';
import * as v from 'valibot';
import { CudapoolError } from '../errors.ts';
import { built } from '../paths.ts';
import { exec } from './exec.ts';

const count = v.pipe(v.number(), v.integer(), v.minValue(0));
const Cached = v.object({ bytes: count, resident: count });
const Read = v.object({ bytes: count, ms: v.pipe(v.number(), v.finite(), v.minValue(0)) });
const LIMIT_MS = 300_000;

async function ask<T extends v.GenericSchema>(schema: T, args: readonly string[]): Promise<v.InferOutput<T>> {
  const { stdout } = await exec(join(built.workloads, 'page_cache'), args, { timeoutMs: LIMIT_MS });
  return v.parse(v.pipe(v.string(), v.parseJson(), schema), stdout);
}

/** Bytes of it that need no disk. */
export const cachedBytes = async (file: string): Promise<number> => (await ask(Cached, ['look', file])).resident;

/** Writes it to its disk and has the kernel forget it. Throws if some of it stays: whoever reads it next would not read the disk. */
export async function dropFromCache(file: string): Promise<void> {
  const { bytes, resident } = await ask(Cached, ['drop', file]);
  if (resident === 0) return;
  throw new CudapoolError('ERR_CUDAPOOL_NOT_COLD', `${resident} of ${bytes} bytes of ${file} stay in the page cache`, {
    hint: 'it must be on a disk, not in memory, and nobody may have it mapped: set CUDAPOOL_SCRATCH to a folder on a disk',
  });
}

/** Milliseconds that so many threads take to read all of it. */
export const readMs = async (file: string, threads: number): Promise<number> =>
  (await ask(Read, ['read', file, String(threads)])).ms;
