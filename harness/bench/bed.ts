// SPDX-License-Identifier: MIT
// What all suites stand on: a driver (the GPU's or the software one), both ways to restore, a pool of our own, scratch space.
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PRETEND_GPU } from '../adapters/criu.ts';
import type { CriuRun } from '../adapters/criu-run.ts';
import { which } from '../adapters/exec.ts';
import { chooseCriu, withStockPlugin } from '../container/criu-tree.ts';
import { type Lab, makeLab } from '../container/lab.ts';
import { type OwnPool, poolReport, startOwnPool } from '../container/pool-process.ts';
import { type DriverFacts, driverFacts } from '../driver/index.ts';
import { unfitError } from '../errors.ts';
import { built, inRoot } from '../paths.ts';

/** How a restore is done: as upstream does it, or with the patched plugin and the pool. */
export type Way = 'stock' | 'pool';

export interface BedOptions {
  /** Default: the GPU if there is one. */
  readonly driver?: 'gpu' | 'softcuda' | undefined;
  /** The costs that the software driver spends; '' or absent: none. */
  readonly costs?: string | undefined;
  /** A built CRIU tree; default: the one that `cudapool build` made. */
  readonly criu?: string | undefined;
}

export interface Bed {
  readonly driver: 'gpu' | 'softcuda';
  readonly facts: DriverFacts;
  readonly costs: string | undefined;
  readonly costsSha256: string | null;
  /** A folder of this bench's own. */
  readonly scratch: string;
  /** For whatever uses CUDA. */
  readonly env: Readonly<Record<string, string>>;
  /** First in CRIU's PATH: where cuda-checkpoint is. */
  readonly toolDirs: readonly string[];
  /** Every cuda-checkpoint that CRIU's plugin might execute. */
  readonly tools: readonly string[];
  readonly criuTree: string;
  readonly criuBinary: string;
  readonly socket: string;
  readonly pool: PoolSwitch;
  /** The environment and the program of one way, with images in `images`. */
  criu(way: Way, images: string, more?: Readonly<Record<string, string>>): CriuRun;
  plugins(way: Way): string;
  close(): Promise<void>;
}

/** The pool of this bench: on for the runs with it, off for those without, so that nothing else is warm then. */
export interface PoolSwitch {
  /** Returns when the driver has been warm in it for a while, as in a resident pool. */
  on(): Promise<OwnPool>;
  off(): Promise<void>;
  readonly current: OwnPool | undefined;
  report(): Promise<Record<string, unknown> | undefined>;
}

/** Between a driver that says that it is warm, and a measurement. */
export const SETTLE_MS = 1000;
const RESTORE_MS = 180_000;
/** The H200's costs, measured (shared by the demo and the checks). */
export const H200_COSTS = inRoot('softcuda', 'costs-h200.conf');
/** A configuration file of the bench's own. */
const CONFIG = 'cudapool.conf';

function softwareEnv(scratch: string, costs: string | undefined): Record<string, string> {
  const devices = join('/dev/shm', `cudapool-bench-${process.pid}`);
  mkdirSync(devices, { recursive: true, mode: 0o755 });
  const libraries = process.env.LD_LIBRARY_PATH;
  return {
    LD_LIBRARY_PATH: [built.softcudaLib, ...(libraries ? [libraries] : [])].join(delimiter),
    SOFTCUDA_DIR: devices,
    SOFTCUDA_COSTS: costs ?? '',
    ...PRETEND_GPU,
    CUDAPOOL_CONFIG: join(scratch, CONFIG),
  };
}

async function chooseDriver(asked: BedOptions['driver']): Promise<{ kind: 'gpu' | 'softcuda'; facts: DriverFacts }> {
  const real = await driverFacts();
  const usable = real.problem === undefined && (real.devices?.length ?? 0) > 0;
  if (asked === 'gpu' && !usable) {
    throw unfitError(
      'ERR_CUDAPOOL_NO_GPU',
      `there is no usable GPU: ${real.problem ?? 'the driver has no device'}`,
      'leave --driver out to use the software driver',
    );
  }
  return asked === 'softcuda' || !usable ? { kind: 'softcuda', facts: real } : { kind: 'gpu', facts: real };
}

function cudaCheckpoint(): string {
  const tool = which('cuda-checkpoint', `${process.env.PATH ?? ''}:/usr/local/nvidia/bin:/usr/local/cuda/bin`);
  if (tool === undefined) {
    throw unfitError(
      'ERR_CUDAPOOL_TOOL_MISSING',
      "NVIDIA's cuda-checkpoint is not in PATH: there is nothing to compare with",
      'put it into PATH; it comes with the driver (or from github.com/NVIDIA/cuda-checkpoint)',
    );
  }
  return tool;
}

function scratchDir(above: string): string {
  try {
    if (!existsSync(above)) mkdirSync(above);
    return mkdtempSync(join(above, 'cudapool-bench-'));
  } catch (cause) {
    throw unfitError(
      'ERR_CUDAPOOL_SCRATCH',
      `no folder can be made in ${above}: ${(cause as Error).message}`,
      'name one in CUDAPOOL_SCRATCH that can be written to',
      cause,
    );
  }
}

export async function openBed(options: BedOptions = {}): Promise<Bed> {
  const { kind } = await chooseDriver(options.driver);
  const criu = chooseCriu(options.criu);
  const stock = withStockPlugin(criu).plugins;
  const costs = kind === 'softcuda' && options.costs ? options.costs : undefined;
  if (costs !== undefined && !existsSync(costs)) {
    throw unfitError(
      'ERR_CUDAPOOL_NO_COSTS',
      `${costs} is missing`,
      'give another file of recorded costs, or --costs none',
    );
  }
  const toolDirs = [kind === 'softcuda' ? built.softcudaBin : join(cudaCheckpoint(), '..')];
  // CRIU's images and the workload's files must be on a file system that both CRIU and podman can use.
  const scratch = scratchDir(process.env.CUDAPOOL_SCRATCH ?? tmpdir());
  writeFileSync(join(scratch, CONFIG), ''); // the machine's own must not decide
  const env = kind === 'softcuda' ? softwareEnv(scratch, costs) : { CUDAPOOL_CONFIG: join(scratch, CONFIG) };
  const socket = join(scratch, 'pool.sock');
  const cleanUp = (): void => {
    rmSync(scratch, { recursive: true, force: true });
    if (kind === 'softcuda') rmSync(env.SOFTCUDA_DIR as string, { recursive: true, force: true });
  };

  let current: OwnPool | undefined;
  const place = { socket, env };
  const pool: PoolSwitch = {
    get current() {
      return current;
    },
    async on() {
      if (current === undefined) {
        current = await startOwnPool({ ...place, log: join(scratch, 'pool.log') });
        await sleep(SETTLE_MS);
      }
      return current;
    },
    async off() {
      const stopping = current;
      current = undefined;
      await stopping?.stop();
    },
    report: () => poolReport(place),
  };
  const plugins = (way: Way): string => (way === 'stock' ? stock : criu.plugins);

  try {
    return {
      driver: kind,
      facts: await driverFacts({ env }),
      costs,
      costsSha256: costs === undefined ? null : createHash('sha256').update(readFileSync(costs)).digest('hex'),
      scratch,
      env,
      toolDirs,
      tools: [
        ...toolDirs.map((dir) => join(dir, 'cuda-checkpoint')),
        ...(existsSync(built.dropin) ? [built.dropin] : []),
      ],
      criuTree: criu.tree,
      criuBinary: criu.binary,
      socket,
      pool,
      plugins,
      criu: (way, images, more = {}) => ({
        binary: criu.binary,
        plugins: plugins(way),
        images,
        timeoutMs: RESTORE_MS,
        env: {
          ...env,
          PATH: [...toolDirs, process.env.PATH ?? ''].join(delimiter),
          CUDAPOOL_SOCKET: socket,
          CUDAPOOL_START: '0',
          CRIU_CUDA_CONTEXT_POOL: way === 'pool' ? '1' : '0',
          LD_PRELOAD: undefined,
          ...more,
        },
      }),
      async close() {
        await pool.off();
        cleanUp();
      },
    };
  } catch (thrown) {
    cleanUp();
    throw thrown;
  }
}

/** A lab with the bed's driver, costs and CRIU, for suites of containers. */
export const labOf = ({ driver, criuTree, costs }: Bed, storage?: string): Promise<Lab> =>
  makeLab({
    driver: driver === 'gpu' ? 'gpu' : 'software',
    criu: criuTree,
    storage,
    env: costs === undefined ? {} : { SOFTCUDA_COSTS: costs },
  });

/** A lab's pool: started where it does not run, as PoolSwitch does it. */
export async function labPoolOn(lab: Lab): Promise<void> {
  const pool = lab.pool();
  if (pool !== undefined && pool.child.exitCode === null && pool.child.signalCode === null) return;
  await lab.startPool();
  await sleep(SETTLE_MS);
}
