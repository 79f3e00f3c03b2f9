// SPDX-License-Identifier: MIT
// How fast an image gets into the GPU, checksums included: by threads and chunk size from the page cache, and from the disk.
import { tmpdir } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { prefetch } from '../../adapters/cudapoold.ts';
import { cachedBytes, dropFromCache, readMs } from '../../adapters/page-cache.ts';
import { inspectContainer } from '../../adapters/podman.ts';
import { checkpointDir, imagesIn } from '../../container/images.ts';
import type { Lab } from '../../container/lab.ts';
import { poolReport } from '../../container/pool-process.ts';
import { parksOf } from '../../container/records.ts';
import { CudapoolError, usageError } from '../../errors.ts';
import { labOf, SETTLE_MS } from '../bed.ts';
import { isInMemory, memoryStorage } from '../cycle.ts';
import type { Experiment } from '../experiment.ts';
import { checkAnswers } from '../processes.ts';
import type { Metric } from '../record.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

interface Way {
  readonly name: string;
  readonly label: string;
  readonly threads: number;
  readonly chunkMb: number;
}

const way = (threads: number, chunkMb: number): Way => ({
  name: `t${threads}-c${chunkMb}`,
  label: `${threads} thread${threads === 1 ? '' : 's'}, ${chunkMb} MiB`,
  threads,
  chunkMb,
});
/** The first two are what the project uses by itself, and the guide's. */
const WAYS: readonly Way[] = [way(16, 4), way(8, 256), way(1, 4), way(4, 64), way(8, 16), way(16, 16)];
const SEED = 1;
const COLD: Way = WAYS[0] as Way;
const sizeOf = ({ bed, gib }: SuiteOptions): number => gib?.[0] ?? (bed.driver === 'gpu' ? 16 : 0.5);
/** For an image that is to be on a disk. */
const diskStorage = (): string => process.env.CUDAPOOL_SCRATCH ?? tmpdir();

/** A process with so much memory, checkpointed once: its image is loaded again and again. */
function makeSource({ bed }: SuiteOptions, size: number, storage: string | undefined) {
  const memoryMib = Math.round(size * 1024);
  const pieces = Math.max(1, Math.round(size));
  let made: { readonly lab: Lab; dir?: string } | undefined;
  return {
    bytes: memoryMib * 2 ** 20,
    async checkpointed(): Promise<{ readonly lab: Lab; readonly dir: string }> {
      if (made?.dir !== undefined) return { lab: made.lab, dir: made.dir };
      made ??= { lab: await labOf(bed, storage) };
      const { lab } = made;
      await lab.startPool();
      const workload = await lab.start({ memoryMib, pieces, seed: SEED, shim: true, readyMs: 120_000 });
      checkAnswers({ memoryMib, pieces, seed: SEED }, (await workload.ask()).answers);
      await lab.checkpoint(workload, { pool: true });
      made.dir = checkpointDir(await inspectContainer(lab.podman, workload.name));
      return { lab, dir: made.dir };
    },
    /** A pool of its own for each run: its ring is made within the load, as in a restore by a fresh pool. */
    async startPool({ threads, chunkMb }: Way): Promise<void> {
      const { lab } = await this.checkpointed();
      await lab.startPool([], { CRIU_CUDA_STREAMS: String(threads), CRIU_CUDA_CHUNK_MB: String(chunkMb) });
      await sleep(SETTLE_MS);
    },
    /** Milliseconds until all of it is on the GPU. */
    async load(): Promise<number> {
      const { lab, dir } = await this.checkpointed();
      const started = performance.now();
      const found = await prefetch(lab.poolPlace(), { dir, tier: 'hot' });
      const ms = performance.now() - started;
      const hot = parksOf((await poolReport(lab.poolPlace()))?.parks).filter(({ tier }) => tier === 'hot');
      if (hot.reduce((sum, park) => sum + park.bytes, 0) < this.bytes) {
        throw new CudapoolError(
          'ERR_CUDAPOOL_TIER',
          `not all of ${this.bytes} bytes are on the GPU: ${found?.text ?? ''}`,
        );
      }
      return ms;
    },
    async image(): Promise<string> {
      const [image] = imagesIn((await this.checkpointed()).dir);
      if (image === undefined)
        throw new CudapoolError('ERR_CUDAPOOL_WRONG_PATH', 'nothing was parked: there is no image');
      return image.file;
    },
    async leave(): Promise<void> {
      const left = made;
      made = undefined;
      await left?.lab.dispose();
    },
  };
}

const METRICS: readonly Metric[] = [
  { name: 'load_ms', unit: 'ms', label: 'cudapool prefetch' },
  { name: 'load_gbps', unit: 'GB/s', label: 'into the GPU, checksums included' },
];
const loaded = (bytes: number, load_ms: number) => ({ load_ms, load_gbps: bytes / load_ms / 1e6 });

function staged(options: SuiteOptions): Experiment {
  const { only } = options;
  const ways = WAYS.filter(({ name }) => only === undefined || only.includes(name));
  if (ways.length === 0) throw usageError('none of these is a way to load', WAYS.map(({ name }) => name).join(', '));
  const size = sizeOf(options);
  const storage = memoryStorage((size + 0.5) * 1.2 * 2 ** 30);
  const source = makeSource(options, size, storage);
  return {
    suite: 'load',
    case: 'staged',
    title: `An image of ${size} GiB from the page cache into the GPU, by threads and chunk.`,
    setup: { memory_mib: source.bytes / 2 ** 20, storage: storage ?? 'disk' },
    variants: ways.map(({ name, label }) => ({ name, label })),
    metrics: METRICS,
    targets: [{ kind: 'at_least', what: 'staged load, GB/s', metric: 'load_gbps', variant: 't16-c4', min: 40 }],
    prepare: (variant) => source.startPool(ways.find(({ name }) => name === variant) ?? COLD),
    run: async () => ({ verified: true, values: loaded(source.bytes, await source.load()) }),
    finish: () => source.leave(),
  };
}

/**
 * From the disk: no pool runs while the image is dropped from the page cache, and a run whose image is not out of it, when it
 * begins, is a failed one. What the disk gives to as many threads that do nothing else is measured in turn.
 */
function cold(options: SuiteOptions): Experiment {
  const size = sizeOf(options);
  const source = makeSource(options, size, diskStorage());
  return {
    suite: 'load',
    case: 'cold',
    title: `An image of ${size} GiB from the disk into the GPU, and from the disk only.`,
    setup: { memory_mib: source.bytes / 2 ** 20, storage: 'disk', threads: COLD.threads },
    variants: [
      { name: 'disk', label: 'read by as many threads, without a GPU' },
      { name: 'cold', label: `cold, ${COLD.label}` },
    ],
    metrics: METRICS,
    targets: [
      {
        kind: 'ratio',
        what: 'cold load, of the time that the disk takes',
        metric: 'load_ms',
        variant: 'cold',
        baseline: 'disk',
        max: 1.1,
      },
    ],
    prepare: async (variant) => {
      const { lab } = await source.checkpointed();
      await lab.pool()?.stop();
      await dropFromCache(await source.image());
      if (variant === 'cold') await source.startPool(COLD);
    },
    run: async (variant) => {
      const image = await source.image();
      const resident = await cachedBytes(image);
      if (resident > 0)
        throw new CudapoolError(
          'ERR_CUDAPOOL_NOT_COLD',
          `${resident} bytes of the image are in the page cache already`,
        );
      const ms = variant === 'cold' ? await source.load() : await readMs(image, COLD.threads);
      return { verified: true, values: loaded(source.bytes, ms) };
    },
    finish: () => source.leave(),
  };
}

/** Either case can be had alone: `--only cold`, `--only t16-c4`. */
function chosen(options: SuiteOptions): Experiment[] {
  const { only } = options;
  const rest = only?.filter((name) => name !== 'cold');
  return [
    ...(rest?.length !== 0 ? [staged({ ...options, only: rest })] : []),
    ...(only === undefined || only.includes('cold') ? [cold(options)] : []),
  ];
}

export const loadSuite: Suite = {
  name: 'load',
  summary: 'an image into the GPU: GB/s by threads and chunk from the page cache, and from the disk (--only cold)',
  runs: 3,
  warmup: 0,
  seconds: 160,
  experiments: chosen,
  leaveOut: async (_, name) =>
    name === 'cold' && isInMemory(diskStorage())
      ? `${diskStorage()} is in memory: name a folder on a disk in CUDAPOOL_SCRATCH`
      : undefined,
};
