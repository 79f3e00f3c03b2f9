// SPDX-License-Identifier: MIT
// How fast an image gets into the GPU, checksums included: by threads and chunk size from the page cache, and from the disk.
import { setTimeout as sleep } from 'node:timers/promises';
import { prefetch } from '../../adapters/cudapoold.ts';
import { inspectContainer } from '../../adapters/podman.ts';
import { checkpointDir } from '../../container/images.ts';
import { type Lab, makeLab } from '../../container/lab.ts';
import { poolReport } from '../../container/pool-process.ts';
import { parksOf } from '../../container/records.ts';
import { CudapoolError, usageError } from '../../errors.ts';
import { SETTLE_MS } from '../bed.ts';
import { evictAll, memoryStorage } from '../cycle.ts';
import type { Experiment } from '../experiment.ts';
import { checkAnswers } from '../processes.ts';
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

function experiment({ bed, gib, only }: SuiteOptions, cold: boolean): Experiment {
  const size = gib?.[0] ?? (bed.driver === 'gpu' ? 16 : 0.5);
  const memoryMib = Math.round(size * 1024);
  const pieces = Math.max(1, Math.round(size));
  const chosen = WAYS.filter(({ name }) => only === undefined || only.includes(name));
  if (chosen.length === 0) throw usageError('none of these is a way to load', WAYS.map(({ name }) => name).join(', '));
  const ways = cold ? chosen.slice(0, 1) : chosen;
  const storage = cold ? undefined : memoryStorage((size + 0.5) * 1.2 * 2 ** 30);
  let lab: Lab | undefined;
  let dir: string | undefined;

  async function checkpointed(): Promise<{ lab: Lab; dir: string }> {
    if (lab !== undefined && dir !== undefined) return { lab, dir };
    lab = await makeLab({
      driver: bed.driver === 'gpu' ? 'gpu' : 'software',
      criu: bed.criuTree,
      storage,
      env: bed.costs === undefined ? {} : { SOFTCUDA_COSTS: bed.costs },
    });
    await lab.startPool();
    const workload = await lab.start({ memoryMib, pieces, seed: SEED, shim: true, readyMs: 120_000 });
    checkAnswers({ memoryMib, pieces, seed: SEED }, (await workload.ask()).answers);
    await lab.checkpoint(workload, { pool: true });
    dir = checkpointDir(await inspectContainer(lab.podman, workload.name));
    return { lab, dir };
  }

  return {
    suite: 'load',
    case: cold ? 'cold' : 'staged',
    title: cold
      ? `An image of ${size} GiB from the disk into the GPU.`
      : `An image of ${size} GiB from the page cache into the GPU, by threads and chunk.`,
    setup: { memory_mib: memoryMib, storage: storage ?? 'disk' },
    variants: ways.map(({ name, label }) => ({ name, label: cold ? `cold, ${label}` : label })),
    metrics: [
      { name: 'load_ms', unit: 'ms', label: 'cudapool prefetch' },
      { name: 'load_gbps', unit: 'GB/s', label: 'into the GPU, checksums included' },
    ],
    targets: cold
      ? []
      : [{ kind: 'at_least', what: 'staged load, GB/s', metric: 'load_gbps', variant: 't16-c4', min: 40 } as const],
    // A pool of its own for each run: its ring is made within the load, as in a restore by a fresh pool.
    prepare: async (variant) => {
      const how = ways.find(({ name }) => name === variant) as Way;
      const at = await checkpointed();
      await at.lab.startPool([], {
        CRIU_CUDA_STREAMS: String(how.threads),
        CRIU_CUDA_CHUNK_MB: String(how.chunkMb),
      });
      await sleep(SETTLE_MS);
      if (cold) await evictAll(at.lab, 'cold');
    },
    run: async () => {
      const at = await checkpointed();
      const started = performance.now();
      const found = await prefetch(at.lab.poolPlace(), { dir: at.dir, tier: 'hot' });
      const load_ms = performance.now() - started;
      const bytes = memoryMib * 2 ** 20;
      const report = await poolReport(at.lab.poolPlace());
      const hot = parksOf(report?.parks).filter(({ tier }) => tier === 'hot');
      if (hot.reduce((sum, park) => sum + park.bytes, 0) < bytes) {
        throw new CudapoolError('ERR_CUDAPOOL_TIER', `not all of ${bytes} bytes are on the GPU: ${found?.text ?? ''}`);
      }
      return { verified: true, values: { load_ms, load_gbps: bytes / load_ms / 1e6 } };
    },
    finish: async () => {
      const left = lab;
      lab = undefined;
      await left?.dispose();
    },
  };
}

export const loadSuite: Suite = {
  name: 'load',
  summary: 'an image into the GPU: GB/s by threads and chunk from the page cache, and from the disk',
  runs: 3,
  warmup: 0,
  seconds: 150,
  experiments: (options) => [experiment(options, false), experiment(options, true)],
};
