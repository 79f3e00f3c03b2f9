// SPDX-License-Identifier: MIT
// The pool's own directory (CUDAPOOL_IMAGE_DIR): images of the drop-in, which no checkpoint of podman's takes with it.
import { rmSync } from 'node:fs';
import { imageReport, type PoolPlace, poolOptions, poolState } from '../adapters/cudapoold.ts';
import { isDryRun, recordDry } from '../adapters/exec.ts';
import { CudapoolError } from '../errors.ts';
import { type ImageFile, imagesIn } from './images.ts';

export interface OwnImages {
  readonly dir: string;
  readonly count: number;
  readonly bytes: number;
  /** 0 where there is none. */
  readonly oldest_age_s: number;
}

const ageOf = ({ mtime_ms }: ImageFile): number => Math.max(0, (Date.now() - mtime_ms) / 1000);

const sizeOf = (images: readonly ImageFile[]): number => images.reduce((sum, { bytes }) => sum + bytes, 0);

/** Where this machine's configuration has it. */
async function ownDir(place: PoolPlace): Promise<string> {
  return String((await poolOptions(place)).find(({ environment }) => environment === 'CUDAPOOL_IMAGE_DIR')?.value);
}

export async function ownImages(place: PoolPlace = {}): Promise<OwnImages> {
  const dir = await ownDir(place);
  const images = imagesIn(dir);
  const oldest_age_s = Math.round(Math.max(0, ...images.map(ageOf)));
  return { dir, count: images.length, bytes: sizeOf(images), oldest_age_s };
}

/** The processes that live and whose memory the pool has: what is checkpointed and was not killed. */
async function livingParked(place: PoolPlace): Promise<ReadonlySet<number>> {
  const state = await poolState(place);
  if (!state.running) {
    throw new CudapoolError(
      'ERR_CUDAPOOL_NO_POOL',
      `which images living processes wait for, a pool knows: ${state.why}`,
      {
        hint: '`cudapool pool start` starts one',
      },
    );
  }
  const { held, held_count } = state.status;
  if (held.length < held_count) {
    throw new CudapoolError('ERR_CUDAPOOL_PRUNE', `the pool holds ${held_count} processes and names ${held.length}`, {
      hint: 'do it again when there are fewer checkpoints under way',
    });
  }
  return new Set(held.filter(({ parked }) => parked).map(({ pid }) => pid));
}

/** Whose memory it is, as a process number; undefined: it is no sound image, and nobody can be given what it holds. */
const pidOf = (file: string, place: PoolPlace): Promise<number | undefined> =>
  imageReport(file, {}, place).then(
    ({ pid }) => pid,
    (error: CudapoolError) => {
      if (error.code !== 'ERR_CUDAPOOL_IMAGE') throw error;
      return undefined;
    },
  );

export interface Pruned {
  readonly dir: string;
  readonly removed: readonly string[];
  readonly bytes: number;
  /** Old enough, and left: the process lives, and waits for its memory. */
  readonly awaited: readonly string[];
  /** Younger. */
  readonly left: number;
}

/** Removes the images that are older than this from the pool's own directory; the pool lets go of their memory by itself. */
export async function pruneOwnImages(olderThanS: number, place: PoolPlace = {}): Promise<Pruned> {
  const dir = await ownDir(place);
  const images = imagesIn(dir);
  const old = images.filter((image) => ageOf(image) >= olderThanS);
  const living = await livingParked(place);
  const removed: ImageFile[] = [];
  const awaited: string[] = [];
  for (const image of old) {
    const pid = await pidOf(image.file, place);
    if (pid !== undefined && living.has(pid)) awaited.push(image.file);
    else removed.push(image);
  }
  for (const { file } of removed) {
    if (isDryRun()) recordDry(`rm ${file}`);
    else rmSync(file, { force: true });
  }
  return {
    dir,
    removed: removed.map(({ file }) => file),
    bytes: sizeOf(removed),
    awaited,
    left: images.length - old.length,
  };
}
