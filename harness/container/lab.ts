// SPDX-License-Identifier: MIT
// A place for tests and benchmarks: podman's storage, a pool, a driver and workloads of its own, and nothing left afterwards.
import { randomBytes } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PRETEND_GPU } from '../adapters/criu.ts';
import { type PoolPlace, poolState, stopPool } from '../adapters/cudapoold.ts';
import { exec, lastLines, tidyUp, which } from '../adapters/exec.ts';
import { inspectContainer, type PodmanPlace, podman } from '../adapters/podman.ts';
import { archiveFolder } from '../adapters/tar.ts';
import { unfitError } from '../errors.ts';
import { built } from '../paths.ts';
import {
  type ActionResult,
  type CheckpointOptions,
  checkpointContainer,
  type RestoreOptions,
  restoreContainer,
} from './actions.ts';
import { type Answers, type AskOptions, ask, forgetAnswers } from './ask.ts';
import { type CriuChoice, chooseCriu } from './criu-tree.ts';
import { type OwnPool, startOwnPool } from './pool-process.ts';
import { type Prepared, type Program, prepareProgram, sameProgram } from './programs.ts';
import { canRaiseLimits, DRIVER_DIR, driverDevices } from './rootfs.ts';
import { installShim, podmanArguments, shimDir } from './shim.ts';

export interface LabOptions {
  /** auto: the GPU where there is one. */
  readonly driver?: 'auto' | 'gpu' | 'software';
  /** Built CRIU tree; default: what `cudapool build` made. */
  readonly criu?: string;
  /** For the driver, the pool, CRIU and the workloads alike: a cost model, faults. */
  readonly env?: Readonly<Record<string, string>>;
  /** Where checkpoints are kept; default: below /tmp, as all of it. A memory file system, for instance. */
  readonly storage?: string | undefined;
  /** Put first in CRIU's PATH, before the software driver's cuda-checkpoint: the drop-in's folder. */
  readonly pathDirs?: readonly string[];
}

export interface WorkloadOptions {
  /** Default: gpu_app. What follows from `memoryMib` to `seed` is for that alone. */
  readonly program?: Program;
  /** GPU memory of each process; 0: an empty context. */
  readonly memoryMib?: number;
  /** Of that, not zero; default: all. */
  readonly filledMib?: number;
  /** Allocations that make it up; default 1. */
  readonly pieces?: number;
  /** How it is allocated; default: by cuMemAlloc. */
  readonly kind?: 'alloc' | 'map' | 'ordered' | 'managed';
  /** Devices that it is spread over; default 1. */
  readonly devices?: number;
  /** Work is in flight all the time. */
  readonly busy?: boolean;
  /** What fills and reads it; default: kernels. Copies are made with another device current, where it has one. */
  readonly by?: 'kernel' | 'copy';
  /** Frees and allocates between answers. */
  readonly replace?: boolean;
  readonly processes?: number;
  /** ask: no CUDA before the first question. */
  readonly when?: 'start' | 'ask';
  readonly api?: 'primary' | 'create';
  readonly seed?: number;
  /** true, or the shim's own options: created with the shim. */
  readonly shim?: boolean | Readonly<Record<string, string>>;
  readonly env?: Readonly<Record<string, string>>;
  /** Created from an image in the lab's storage instead of a folder: podman imports archives of such containers only. */
  readonly image?: boolean;
  /** Further options of `podman run`. */
  readonly podmanOptions?: readonly string[];
  /** How long it may take to become ready. */
  readonly readyMs?: number;
}

/** A workload in a container. */
export interface Workload {
  readonly name: string;
  readonly processes: number;
  /** Where it is asked; the same path inside of a container. */
  readonly dir: string;
  ask(options?: AskOptions): Promise<Answers>;
  /** The root process on the host; 0: it does not run. */
  pid(): Promise<number>;
  /** Ends it, so that it can be restored. */
  kill(): Promise<void>;
}

export type LabAction = Partial<Omit<CheckpointOptions & RestoreOptions, 'place' | 'container'>> & {
  /** Of `podman container checkpoint --create-image`, instead of the container. */
  readonly image?: string;
};

export interface Lab {
  readonly dir: string;
  readonly driver: 'gpu' | 'software';
  /** Whatever is measured here says 'simulated'. */
  readonly simulated: boolean;
  readonly socket: string;
  readonly criu: CriuChoice;
  readonly podman: PodmanPlace;
  /** The environment of a pool or a tool here. */
  readonly env: Readonly<Record<string, string>>;
  /** Where CRIU looks for cuda-checkpoint first. */
  readonly pathDirs: readonly string[];
  /** A pool of the lab's own; there is one at a time. */
  startPool(args?: readonly string[], env?: Readonly<Record<string, string>>): Promise<OwnPool>;
  /** What the driver is to do wrong from now on ("restore=1,…", softcuda/fault.c); empty: nothing. Software driver only. */
  faults(list: string): void;
  pool(): OwnPool | undefined;
  poolPlace(): PoolPlace;
  start(options?: WorkloadOptions): Promise<Workload>;
  /** `podman rm`; the folder where it was asked stays. */
  remove(workload: Workload): Promise<void>;
  /** With the lab's environment; the pool is neither started nor looked for (startPool: false), unless the options say so. */
  checkpoint(workload: Workload, options?: LabAction): Promise<ActionResult>;
  /** --keep, unless podmanOptions are given. With `archive` or `image`, under the workload's name. */
  restore(workload: Workload, options?: LabAction): Promise<ActionResult>;
  /** Everything that was begun here has ended and is gone. */
  dispose(): Promise<void>;
}

const GPU_APP: Program = { kind: 'gpu_app' };
const IMAGE = 'localhost/cudapool-lab';
const READY_MS = 60_000;
/** A container that has ended will not become ready; it is looked at so often. */
const LOOK_MS = 500;

function gpuPresent(): boolean {
  try {
    return readdirSync('/proc/driver/nvidia/gpus').length > 0;
  } catch {
    return false;
  }
}

function chooseDriver(asked: LabOptions['driver'] = 'auto'): 'gpu' | 'software' {
  const gpu = gpuPresent();
  if (asked === 'gpu' && !gpu)
    throw unfitError('ERR_CUDAPOOL_NO_GPU', 'there is no NVIDIA GPU', 'use the software driver');
  const driver = asked === 'auto' ? (gpu ? 'gpu' : 'software') : asked;
  if (driver === 'software' && !existsSync(join(built.softcudaLib, 'libcuda.so.1'))) {
    throw unfitError('ERR_CUDAPOOL_NO_DRIVER', 'the software driver is not built', 'cudapool setup');
  }
  return driver;
}

/** Locks, events and defaults of podman in the lab itself, so that no container of the user's is touched or waited for. */
function podmanPlace(dir: string, storage: string): PodmanPlace {
  const conf = join(dir, 'containers.conf');
  const limits = canRaiseLimits() ? [] : ['default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]'];
  const lines = [
    '[containers]',
    ...limits,
    '[engine]',
    'runtime = "runc"',
    'lock_type = "file"',
    'events_logger = "none"',
  ];
  writeFileSync(conf, `${lines.join('\n')}\n`);
  return {
    globals: [
      `--root=${join(storage, 'root')}`,
      `--runroot=${join(dir, 'runroot')}`,
      `--tmpdir=${join(dir, 'tmp')}`,
      '--storage-driver=vfs',
    ],
    env: { CONTAINERS_CONF: conf },
  };
}

export async function makeLab(options: LabOptions = {}): Promise<Lab> {
  for (const tool of ['podman', 'runc']) {
    if (which(tool) !== undefined) continue;
    throw unfitError('ERR_CUDAPOOL_TOOL_MISSING', `${tool} is not installed, or not in PATH`, 'cudapool setup');
  }
  const driver = chooseDriver(options.driver);
  const criu = chooseCriu(options.criu);
  const dir = mkdtempSync(join(tmpdir(), 'cudapool-lab-'));
  const socket = join(dir, 'pool', 's');
  const devices = join(dir, 'softcuda');
  for (const each of [dirname(socket), devices]) mkdirSync(each, { recursive: true });
  const storage = options.storage === undefined ? dir : mkdtempSync(join(options.storage, 'cudapool-lab-'));
  const place = podmanPlace(dir, storage);
  writeFileSync(join(dir, 'cudapool.conf'), '');
  writeFileSync(join(devices, 'machine'), dir); // no other lab's pool takes these devices for its own

  const env: Record<string, string> = {
    CUDAPOOL_SOCKET: socket,
    CUDAPOOL_CONFIG: join(dir, 'cudapool.conf'),
    CUDAPOOL_DAEMON: built.cudapoold,
    CUDAPOOL_STATE_DIR: join(dir, 'state'),
    ...(driver === 'software' && {
      ...PRETEND_GPU,
      LD_LIBRARY_PATH: built.softcudaLib,
      SOFTCUDA_DIR: devices,
    }),
    ...options.env,
  };
  if (driver === 'software' && env.SOFTCUDA_COSTS) {
    // where containers see it, too
    copyFileSync(env.SOFTCUDA_COSTS, join(devices, 'costs.conf'));
    env.SOFTCUDA_COSTS = join(devices, 'costs.conf');
  }
  const pathDirs = [...(options.pathDirs ?? []), ...(driver === 'software' ? [built.softcudaBin] : [])];
  const poolPlace = (): PoolPlace => ({ daemon: built.cudapoold, socket, env });
  const shimFolder = shimDir(env);

  let own: OwnPool | undefined;
  let image: string | undefined;
  const prepared: { readonly program: Program; readonly prepared: Prepared }[] = [];

  /** Made once, for every container with this program: a container's own files are none. */
  async function prepare(program: Program): Promise<Prepared> {
    const known = prepared.find((each) => sameProgram(each.program, program));
    if (known !== undefined) return known.prepared;
    const made = await prepareProgram(program, {
      dir: join(dir, program.kind === 'python' ? 'rootfs-python' : `rootfs-${prepared.length}`),
      driver,
      loadsLater: [built.shim, join(built.softcudaLib, 'libcuda.so.1')].filter((file) => existsSync(file)),
    });
    prepared.push({ program, prepared: made });
    return made;
  }

  const memoryArguments = (o: WorkloadOptions): string[] => [
    `--memory=${o.memoryMib ?? 0}`,
    `--filled=${o.filledMib ?? o.memoryMib ?? 0}`,
    `--pieces=${o.pieces ?? 1}`,
    `--kind=${o.kind ?? 'alloc'}`,
    `--devices=${o.devices ?? 1}`,
    ...(o.busy === true ? ['--busy'] : []),
    `--by=${o.by ?? 'kernel'}`,
    ...(o.replace === true ? ['--replace'] : []),
    `--processes=${o.processes ?? 1}`,
    `--when=${o.when ?? 'start'}`,
    `--api=${o.api ?? 'primary'}`,
    `--seed=${o.seed ?? 1}`,
  ];
  const shimEnv = (shim: WorkloadOptions['shim']): Readonly<Record<string, string>> =>
    typeof shim === 'object' ? shim : {};
  /** For the driver in the application itself. */
  const driverEnv = (): Record<string, string> =>
    Object.fromEntries(Object.entries(env).filter(([name]) => /^SOFTCUDA_/.test(name)));

  /** The same as an image. */
  async function sharedImage(): Promise<string> {
    if (image !== undefined) return image;
    const { rootfs } = await prepare(GPU_APP);
    const archive = join(dir, 'rootfs.tar');
    await archiveFolder(rootfs, archive);
    await podman(place, ['import', '--quiet', archive, IMAGE], { timeoutMs: 120_000 });
    rmSync(archive);
    image = IMAGE;
    return image;
  }

  async function start(o: WorkloadOptions = {}): Promise<Workload> {
    const name = `cudapool-${randomBytes(5).toString('hex')}`;
    const at = join(dir, 'work', name);
    mkdirSync(at, { recursive: true });
    const program = o.program ?? GPU_APP;
    const how = await prepare(program);
    const shim =
      o.shim === undefined || o.shim === false
        ? undefined
        : { library: installShim(shimFolder), dir: shimFolder, env: shimEnv(o.shim) };
    const needs = podmanArguments({
      ...(shim !== undefined && { shim }),
      ...(driver === 'software' && { software: { devices, env: driverEnv() } }),
    });
    const gpu =
      driver === 'gpu'
        ? [...driverDevices().map((device) => `--device=${device}`), `--env=LD_LIBRARY_PATH=${DRIVER_DIR}`]
        : [];
    const workload: Workload = {
      name,
      processes: o.processes ?? 1,
      dir: at,
      ask: (askOptions) => ask(at, { processes: o.processes ?? 1, ...askOptions }),
      pid: async () => {
        const { running, pid } = await inspectContainer(place, name);
        return running ? pid : 0; // podman goes on naming the last one
      },
      kill: async () => {
        await podman(place, ['kill', name], { reject: false });
        await podman(place, ['wait', name], { timeoutMs: 30_000 });
      },
    };
    const extra = Object.entries({ ...how.env, ...o.env }).map(([key, value]) => `--env=${key}=${value}`);
    await podman(place, [
      ...['run', '--detach', '--name', name, '--network=none', `--volume=${at}:${at}`],
      ...needs,
      ...gpu,
      ...extra,
      ...how.options,
      ...(o.podmanOptions ?? []),
      ...(o.image === true ? [await sharedImage()] : ['--rootfs', how.rootfs]),
      ...[...how.command, '--dir', at],
      ...(program.kind === 'gpu_app' ? memoryArguments(o) : []),
    ]);
    await ready(workload, o, async () => {
      const { stdout, stderr } = await podman(place, ['logs', name], { readOnly: true, reject: false });
      return `${stdout}\n${stderr}`; // what each ended with is a line of its own
    });
    return workload;
  }

  /** READY is in its output before it is asked: a workload that is not to use CUDA yet must not be. */
  async function ready(workload: Workload, o: WorkloadOptions, output: () => Promise<string>): Promise<void> {
    const limit = o.readyMs ?? READY_MS;
    const started = performance.now();
    for (let looks = 0; ; ) {
      const now = performance.now() - started;
      if (/^READY$/m.test(await output())) break;
      const look = now > looks * LOOK_MS;
      if (look) looks++;
      if ((look && (await workload.pid()) === 0) || now > limit) {
        throw unfitError(
          'ERR_CUDAPOOL_WORKLOAD',
          `the workload does not start: ${lastLines(await output(), 8).join('\n') || 'no word from it'}`,
          'cudapool check',
        );
      }
      await sleep(Math.min(LOOK_MS / 2, 5 + now / 50)); // what starts slowly is looked at less often: each look is a podman
    }
    if (o.when !== 'ask') await workload.ask({ timeoutMs: limit });
  }

  const action = (o: LabAction) => ({
    place,
    startPool: false,
    criu: criu.tree,
    pathDirs,
    ...o,
    env: { ...env, ...o.env },
  });
  /** Everything that names the lab in its command or its environment: what hangs, and holds podman's locks. */
  function killStragglers(): void {
    for (const entry of readdirSync('/proc').filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)) {
      try {
        const text = ['cmdline', 'environ'].map((file) => readFileSync(`/proc/${entry}/${file}`, 'latin1')).join('\0');
        if (text.includes(dir) || text.includes(storage)) process.kill(Number(entry), 'SIGKILL');
      } catch {
        // it has ended meanwhile
      }
    }
  }

  async function dispose(): Promise<void> {
    const remove = () => podman(place, ['rm', '--all', '--force', '--time=0'], { timeoutMs: 15_000 });
    await remove().catch(() => {
      killStragglers();
      return remove();
    });
    await own?.stop();
    own = undefined;
    if ((await poolState(poolPlace())).running) await stopPool(poolPlace());
    killStragglers();
    const mounted = [...readFileSync('/proc/self/mountinfo', 'utf8').matchAll(/^(?:\S+ ){4}(\S+)/gm)]
      .map(([, target]) => target ?? '')
      .filter((target) => target.startsWith(`${dir}/`) || target.startsWith(`${storage}/`));
    for (const target of mounted.reverse())
      await exec('umount', ['--lazy', target], { timeoutMs: 10_000, reject: false });
    for (const each of [storage, dir]) rmSync(each, { recursive: true, force: true });
  }

  return {
    dir,
    driver,
    simulated: driver === 'software',
    socket,
    criu,
    podman: place,
    env,
    pathDirs,
    startPool: async (args = [], more = {}) => {
      await own?.stop();
      own = await startOwnPool({ ...poolPlace(), socket, env: { ...env, ...more }, args, log: join(dir, 'pool.log') });
      return own;
    },
    faults: (list) => {
      writeFileSync(join(devices, 'faults'), list === '' ? '' : `${list}\n`);
    },
    pool: () => own,
    poolPlace,
    start,
    remove: async (workload) => {
      await podman(place, ['rm', '--force', '--time=0', workload.name]);
    },
    checkpoint: (workload, o = {}) => {
      forgetAnswers(workload.dir, workload.processes);
      return checkpointContainer({ podmanOptions: ['--keep'], ...action(o), container: workload.name });
    },
    restore: (workload, o = {}) => {
      const { name } = workload;
      const what =
        (o.archive ?? o.image) ? { name, ...(o.image !== undefined && { container: o.image }) } : { container: name };
      return restoreContainer({ podmanOptions: ['--keep'], ...action(o), ...what });
    },
    dispose: () => tidyUp(dispose),
  };
}
