// SPDX-License-Identifier: MIT
// Checkpoint and restore of a podman container, with the environment that reaches CRIU, and with what CRIU said.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type CriuLog, messageOf, NO_LOG, type PluginPath, parseCriuLog } from '../adapters/criu-log.ts';
import type { PoolPlace } from '../adapters/cudapoold.ts';
import { type ExecResult, isDryRun, lastLines } from '../adapters/exec.ts';
import {
  type Container,
  inspectContainer,
  isCheckpointImage,
  type PodmanPlace,
  type PodmanStats,
  parseStats,
  podman,
} from '../adapters/podman.ts';
import { asCudapoolError, CudapoolError, usageError } from '../errors.ts';
import { type CriuChoice, chooseCriu, withStockPlugin } from './criu-tree.ts';
import { type PluginOptions, pluginEnvironment, wantsPool } from './environment.ts';
import { checkpointDir, imagesIn } from './images.ts';
import { type CriuStart, type Injection, inject } from './injection.ts';
import { watchLog } from './log-watch.ts';
import { ensurePool, poolReport } from './pool-process.ts';
import { type ParkRecord, recordsIn, recordsOf } from './records.ts';
import { type ShimState, shimOf } from './shim.ts';

export interface ActionOptions extends PluginOptions {
  readonly place: PodmanPlace;
  /** The built tree whose CRIU and plugin are used. */
  readonly criu?: string | undefined;
  /** stock: upstream's plugin, which `cudapool build` keeps beside the patched one. Default: the tree's own. */
  readonly plugin?: 'stock' | 'own' | undefined;
  /** Put first in CRIU's PATH: where cuda-checkpoint is found. */
  readonly pathDirs?: readonly string[];
  /** Options of podman's subcommand, as podman names them. */
  readonly podmanOptions?: readonly string[];
  /** false: the caller has seen to the pool; it is neither looked for nor started here. Default true. */
  readonly startPool?: boolean;
  readonly timeoutMs?: number;
}

export interface RestoreOptions extends ActionOptions {
  /** A container with a checkpoint, an image of `podman container checkpoint --create-image`, or `archive`. */
  readonly container?: string | undefined;
  /** A file of `podman container checkpoint --export`. */
  readonly archive?: string | undefined;
  /** With an image or `archive`: the new container's name. */
  readonly name?: string | undefined;
}

export interface CheckpointOptions extends ActionOptions {
  readonly container: string;
}

export interface ActionResult {
  readonly action: 'checkpoint' | 'restore';
  readonly container: { readonly id: string; readonly name: string };
  /** The podman command from start to end, seen from outside. */
  readonly wall_ms: number;
  /** performance.now() at its start. */
  readonly started_ms: number;
  readonly podman: PodmanStats | undefined;
  /** What podman printed. */
  readonly output: string;
  /** Which way the GPU's part went, and the line of CRIU's log that shows it. */
  readonly path: PluginPath;
  readonly why: string;
  readonly pool_wanted: boolean;
  readonly plugin_messages: readonly string[];
  /** What became of the GPU memory of each process; empty where the pool had no part in it. */
  readonly memory: readonly ParkRecord[];
  readonly criu: {
    readonly binary: string;
    readonly plugins: string;
    readonly version: string | undefined;
    /** The environment got there: the container's runtime ran the CRIU that cudapool put into PATH. */
    readonly reached: boolean;
    readonly starts: readonly CriuStart[];
    readonly log: string | undefined;
  };
  readonly shim: ShimState | undefined;
}

const LIMIT_MS = 15 * 60_000;

interface Prepared {
  readonly criu: CriuChoice;
  readonly env: Record<string, string>;
  readonly injection: Injection;
}

/** The pool that the plugin will speak to. */
const placeOf = (env: Readonly<Record<string, string>>): PoolPlace => ({
  ...(env.CUDAPOOL_DAEMON !== undefined && { daemon: env.CUDAPOOL_DAEMON }),
  ...(env.CUDAPOOL_SOCKET !== undefined && { socket: env.CUDAPOOL_SOCKET }),
  env,
});

async function prepare(options: ActionOptions): Promise<Prepared> {
  const chosen = chooseCriu(options.criu);
  const criu = options.plugin === 'stock' ? withStockPlugin(chosen) : chosen;
  const env = pluginEnvironment(criu, options);
  if (wantsPool(options) && options.startPool !== false) {
    // No pool is not a reason to refuse: the plugin goes the stock way, and says so. A configuration that is wrong is.
    await ensurePool(placeOf(env)).catch((thrown: unknown) => {
      const error = asCudapoolError(thrown);
      if (error.code === 'ERR_CUDAPOOL_INTERRUPTED' || error.code === 'ERR_CUDAPOOL_CONFIG') throw error;
    });
  }
  return { criu, env, injection: inject({ criu, env, ...(options.pathDirs && { pathDirs: options.pathDirs }) }) };
}

export async function checkpointContainer(options: CheckpointOptions): Promise<ActionResult> {
  const before = await inspectContainer(options.place, options.container);
  if (!before.running && !isDryRun()) {
    throw new CudapoolError('ERR_CUDAPOOL_NOT_RUNNING', `${before.name} does not run (it is ${before.status})`, {
      hint: `podman start ${before.name}, or restore an earlier checkpoint: cudapool restore --keep ${before.name}`,
    });
  }
  const prepared = await prepare(options);
  try {
    return await act('checkpoint', options, prepared, before, [before.name]);
  } finally {
    prepared.injection.dispose();
  }
}

export async function restoreContainer(options: RestoreOptions): Promise<ActionResult> {
  const { place, container, archive, name } = options;
  const before = container === undefined ? undefined : await containerOrImage(place, container);
  if (before !== undefined && name !== undefined)
    throw usageError('--name goes with --import or an image', `${before.name} is a container, and keeps its name`);
  if (before?.running && !isDryRun()) {
    throw new CudapoolError('ERR_CUDAPOOL_RUNNING', `${before.name} runs: only a stopped container can be restored`, {
      hint: `podman stop ${before.name} (the restored one takes its place), or take a checkpoint first: cudapool checkpoint --keep ${before.name}`,
    });
  }
  const prepared = await prepare(options);
  const source = container === undefined ? `--import=${archive ?? ''}` : container;
  const what = before !== undefined ? [before.name] : [...(name === undefined ? [] : [`--name=${name}`]), source];
  try {
    return await act('restore', options, prepared, before, what);
  } finally {
    prepared.injection.dispose();
  }
}

/** undefined: it is no container, but an image that was made of a checkpoint. */
async function containerOrImage(place: PodmanPlace, name: string): Promise<Container | undefined> {
  try {
    return await inspectContainer(place, name);
  } catch (error) {
    if (asCudapoolError(error).code !== 'ERR_CUDAPOOL_NO_CONTAINER' || !(await isCheckpointImage(place, name)))
      throw error;
    return undefined;
  }
}

async function act(
  action: 'checkpoint' | 'restore',
  options: RestoreOptions,
  { criu, env, injection }: Prepared,
  before: Container | undefined,
  what: readonly string[],
): Promise<ActionResult> {
  const { place, podmanOptions = [] } = options;
  const args = ['container', action, '--print-stats', ...podmanOptions, ...what];
  const file = action === 'checkpoint' ? 'dump.log' : 'restore.log';
  const watching = watchLog(file, before?.logs, injection);
  let written: string | undefined;
  const ran = await podman(place, args, {
    timeoutMs: options.timeoutMs ?? LIMIT_MS,
    reject: false,
    env: { PATH: injection.path },
    cancel: injection.cancel,
  }).finally(() => {
    written = watching.end();
  });
  // Timing has ended; from here on nobody waits.
  const printed = parseStats(ran.stdout);
  const starts = injection.starts();
  const after =
    before ??
    (ran.exitCode === 0 && printed !== undefined && !ran.dry ? await inspectContainer(place, printed.id) : undefined);
  const log: CriuLog = {
    file: after === undefined ? file : join(after.logs, file),
    ...(written === undefined ? NO_LOG : parseCriuLog(written)),
  };
  if (ran.exitCode !== 0) throw failure(action, ran, before, log, options);
  return {
    action,
    container: { id: after?.id ?? '', name: after?.name ?? '' },
    wall_ms: ran.wall_ms,
    started_ms: ran.started_ms,
    podman: printed?.stats,
    output: ran.stdout,
    path: log.path,
    why: log.why,
    pool_wanted: wantsPool(options),
    plugin_messages: log.plugin_messages,
    // Of another way there may be records of an earlier checkpoint.
    memory: after === undefined || log.path !== 'pool' ? [] : await memoryOf(after, action, env),
    criu: {
      binary: criu.binary,
      plugins: criu.plugins,
      version: log.criu_version,
      reached: starts.some(({ parent }) => parent !== 'podman'),
      starts,
      log: existsSync(log.file) ? log.file : undefined,
    },
    shim: after === undefined ? undefined : shimOf(after),
  };
}

/** From the checkpoint's directory; where podman has removed that (an export, a restore without --keep), from the pool. */
async function memoryOf(
  container: Container,
  action: 'checkpoint' | 'restore',
  env: Readonly<Record<string, string>>,
): Promise<readonly ParkRecord[]> {
  const written = recordsIn(checkpointDir(container), action);
  if (written.length > 0) return written;
  const report = await poolReport(placeOf(env)).catch(() => undefined);
  const stage = action === 'checkpoint' ? 'dump' : 'restore';
  const newest = recordsOf(report?.records).find(
    (record) => record.container === container.id && record.stage === stage,
  );
  return newest === undefined ? [] : [newest];
}

/** Causes that CRIU's log or podman's words name, and what to do about each; the first that matches is told. */
const CAUSES: readonly { readonly pattern: RegExp; readonly hint: string }[] = [
  {
    pattern: /Missing required plugin/i,
    hint: 'the checkpoint was made with a plugin that this CRIU lacks: cudapool build, and name its tree with --criu',
  },
  {
    pattern: /no checkpoint|does not have a checkpoint|checkpoint.*no such file|unable to open.*checkpoint/i,
    hint: 'there is no checkpoint: a restore without --keep deletes it; make one with: cudapool checkpoint --keep NAME',
  },
  {
    pattern: /iptables-restore|network-lock/i,
    hint: 'CRIU locks the network by iptables-restore: apt-get install iptables',
  },
  {
    pattern: /RLIMIT|rlimit|setrlimit|operation not permitted.*limit/i,
    hint: 'this machine lacks CAP_SYS_RESOURCE: create the container with --ulimit nofile=1024:1024 --ulimit nproc=4096:4096',
  },
  {
    pattern: /which only a pool can map back: .*no pool answers/i,
    hint: 'cudapool pool start; the checkpoint is as it was',
  },
  {
    pattern: /the image of this process's GPU memory .* is not in|there is no cudapool-\*\.img/i,
    hint: 'its image is missing or is of another dump: bring back the cudapool-*.img of that checkpoint, or take a new one',
  },
  {
    pattern: /the image cannot be written|No space left on device/i,
    hint: 'the file system of the checkpoint is full (df -h); the application runs on',
  },
  {
    pattern: /this machine has no GPU [0-9a-f]{8}-/,
    hint: 'GPU memory goes back to the GPU that it was taken from: restore where nvidia-smi -L lists that one',
  },
  {
    pattern: /cudapool-[0-9a-f]{32}\.img|the image is damaged/,
    hint: 'what is wrong with an image: cudapool image verify FILE; without it the checkpoint cannot be restored',
  },
  {
    pattern: /not enough GPU memory/i,
    hint: 'end what else uses the GPU (nvidia-smi), then restore again',
  },
  {
    pattern: /out of memory|OUT_OF_MEMORY|\b2 \(CUDA_ERROR/i,
    hint: 'the GPU is out of memory: end what else uses it (nvidia-smi), then restore again',
  },
  {
    pattern: /bad size|File .* has bad (size|mode)|mtime/i,
    hint: 'a file that the container had open has changed since the checkpoint; put it back, or take a new checkpoint',
  },
  {
    pattern: /repository name must have at least one component/i,
    hint: 'podman imports no container that was made with --rootfs: make it from an image (podman import makes one of a folder)',
  },
  {
    pattern: /container with given ID already exists/i,
    hint: 'a restore that was killed left the state of the runtime behind: runc delete --force ID',
  },
  {
    pattern: /does not support checkpoint|without CRIU|crun.*criu/i,
    hint: 'the runtime was built without CRIU: create the container with --runtime runc',
  },
];

/** What is parked, only a pool can give back. */
const wayWithout = (container: Container | undefined): string =>
  container === undefined || imagesIn(checkpointDir(container)).length > 0
    ? 'what is parked in it needs a pool: cudapool pool restart starts another one'
    : 'without the pool: cudapool restore --no-pool';

function failure(
  action: 'checkpoint' | 'restore',
  ran: ExecResult,
  before: Container | undefined,
  log: CriuLog,
  options: RestoreOptions,
): CudapoolError {
  const { errors, tail, plugin_messages, path } = log;
  const lines = [...new Set([...lastLines(ran.stderr, 4), ...errors.slice(-8), ...tail.slice(-3)])];
  const cause = CAUSES.find(({ pattern }) => lines.some((line) => pattern.test(line)));
  const first = errors.find((line) => line.includes('cuda_plugin')) ?? errors[0];
  const shim = before === undefined ? undefined : shimOf(before);
  const hints = [
    shim?.state === 'lost' ? shim.hint : undefined,
    cause?.hint,
    action === 'restore' && path === 'pool' ? `the checkpoint is as it was; ${wayWithout(before)}` : undefined,
    existsSync(log.file) ? `all that CRIU said: ${log.file}` : `to see it by itself: ${ran.command}`,
  ];
  return new CudapoolError(
    action === 'restore' ? 'ERR_CUDAPOOL_RESTORE' : 'ERR_CUDAPOOL_CHECKPOINT',
    `the ${action} of ${before?.name ?? options.container ?? options.archive} failed${first === undefined ? '' : `: ${messageOf(first)}`}`,
    {
      lines,
      hint: hints.filter((hint) => hint !== undefined).join('; '),
      details: { exit_code: ran.exitCode, wall_ms: ran.wall_ms, path, plugin_messages, log: log.file },
    },
  );
}
