// SPDX-License-Identifier: MIT
// Checkpoint and restore of one application in podman, in turn: stock, and with its GPU memory parked, each way it can come back.
import { readFileSync, statfsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { messageOf } from '../adapters/criu-log.ts';
import { inspectContainer } from '../adapters/podman.ts';
import type { ActionResult } from '../container/actions.ts';
import type { Answer } from '../container/ask.ts';
import { checkpointDir, imagesIn, recordLine } from '../container/images.ts';
import type { Lab, Workload, WorkloadOptions } from '../container/lab.ts';
import { leftBytes, type ParkRecord, recordsIn } from '../container/records.ts';
import { CudapoolError } from '../errors.ts';
import { type Bed, labOf, labPoolOn, SETTLE_MS } from './bed.ts';
import type { Outcome } from './experiment.ts';
import { timeRestore } from './processes.ts';
import type { Metric, Variant } from './record.ts';

/** How GPU memory comes back; each is a variant of its own, as they differ by more than any of them varies. */
export const KINDS = {
  stock: "stock: upstream's plugin and NVIDIA's tool",
  'hot-move': 'hot-move: the memory itself, which stayed on the GPU, is given back',
  'hot-copy': 'hot-copy: a copy of it, made on the GPU',
  staged: 'staged: the image, from the page cache, by a pool that was started afresh',
} as const satisfies Record<string, string>;
export type Kind = keyof typeof KINDS;

/** What the pool's record calls them. */
const PATHS: Readonly<Record<Exclude<Kind, 'stock'>, string>> = {
  'hot-move': 'hot-move',
  'hot-copy': 'hot-copy',
  staged: 'loaded',
};

export const kindVariants = (kinds: readonly Kind[]): Variant[] =>
  kinds.map((name) => ({ name, label: KINDS[name].split(':')[0] ?? name }));

/** Those that were asked for, in the order of KINDS. */
export const chooseKinds = (
  usual: readonly Kind[],
  asked: Readonly<Record<string, number | undefined>> | undefined,
): readonly Kind[] => (asked === undefined ? usual : (Object.keys(KINDS) as Kind[]).filter((kind) => kind in asked));

/** About how long a process of this size takes on an H200: its start and its first checkpoints, then each run. */
export function cycleSeconds(
  gib: number,
  kinds: readonly Kind[],
  runsOf: Readonly<Record<string, number | undefined>>,
  runs: number,
): number {
  const ours = kinds.some((kind) => kind !== 'stock') ? 3 + gib / 3 : 0;
  const stock = kinds.includes('stock') ? 3 + 1.2 * gib : 0;
  const each = (kind: Kind): number => (kind === 'stock' ? 2 + 0.8 * gib : 3 + gib / 10);
  return kinds.reduce((sum, kind) => sum + (runsOf[kind] ?? runs) * each(kind), ours + stock);
}

export const CYCLE_METRICS: readonly Metric[] = [
  { name: 'restore_ms', unit: 'ms', label: 'restore, to the first right answer' },
  { name: 'podman_ms', unit: 'ms', label: 'podman container restore' },
  { name: 'checkpoint_ms', unit: 'ms', label: 'podman container checkpoint, image included' },
  { name: 'parked_mib', unit: 'MiB', label: 'GPU memory parked' },
  { name: 'left_mib', unit: 'MiB', label: 'GPU memory left to the driver' },
  { name: 'image_mib', unit: 'MiB', label: 'image of the parked memory' },
];

const MEMORY_FS = '/dev/shm';
const TMPFS_MAGIC = 0x01021994;
const ACTION_MS = 300_000;

/** Bytes that the kernel would give without swapping; its file systems in memory promise more than that. */
function memoryAvailable(): number {
  const [, kib] = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8')) ?? [];
  return Number(kib ?? 0) * 1024;
}

/** Whether files there are in memory. */
export const isInMemory = (dir: string): boolean => statfsSync(dir).type === TMPFS_MAGIC;

/** A memory file system with this much room; undefined: checkpoints go below /tmp. */
export function memoryStorage(bytes: number): string | undefined {
  try {
    const { bavail, bsize } = statfsSync(MEMORY_FS);
    const room = Math.min(bavail * bsize, memoryAvailable());
    return isInMemory(MEMORY_FS) && room >= bytes ? MEMORY_FS : undefined;
  } catch {
    return undefined;
  }
}

export interface CycleOptions {
  readonly bed: Bed;
  readonly workload: WorkloadOptions;
  /** For checkpoints: a memory file system; undefined: below /tmp. */
  readonly storage: string | undefined;
  /** Throws if these are not the right answers; `before`: from before the first checkpoint. */
  readonly check: (answers: readonly Answer[], before?: readonly Answer[]) => void;
  /** The stock way's one checkpoint serves all its restores: where each takes as long as many restores. */
  readonly stockOnce?: boolean;
}

interface Side {
  readonly workload: Workload;
  readonly answers: readonly Answer[];
  checkpointed: boolean;
}

export interface Cycle {
  prepare(kind: Kind): Promise<void>;
  run(kind: Kind): Promise<Outcome>;
  leave(): Promise<void>;
}

const wrongWay = (kind: Kind, what: string): CudapoolError =>
  new CudapoolError('ERR_CUDAPOOL_WRONG_PATH', `this should have gone the way '${kind}': ${what}`, {
    hint: "see the plugin's messages in CRIU's restore.log, and the pool's log",
  });

export function makeCycle({ bed, workload: what, storage, check, stockOnce = false }: CycleOptions): Cycle {
  const sides = new Map<'stock' | 'ours', Side>();
  let lab: Lab | undefined;

  async function theLab(): Promise<Lab> {
    lab ??= await labOf(bed, storage);
    return lab;
  }

  const sideOf = (kind: Kind): 'stock' | 'ours' => (kind === 'stock' ? 'stock' : 'ours');

  /** The container of one way, started the first time. The stock one has no shim. */
  async function start(kind: Kind): Promise<Side> {
    const known = sides.get(sideOf(kind));
    if (known !== undefined) return known;
    const at = await theLab();
    const workload = await at.start({ ...what, shim: kind === 'stock' ? false : (what.shim ?? true) });
    const { answers } = await workload.ask({ timeoutMs: ACTION_MS });
    check(answers);
    const side = { workload, answers, checkpointed: false };
    sides.set(sideOf(kind), side);
    return side;
  }

  const running = async ({ workload }: Side): Promise<boolean> => (await workload.pid()) !== 0;

  const actionOf = (kind: Kind) =>
    kind === 'stock'
      ? ({ pool: false, plugin: 'stock', timeoutMs: ACTION_MS } as const)
      : ({
          pool: true,
          timeoutMs: ACTION_MS,
          env: { CUDAPOOL_HOT: kind === 'hot-copy' ? 'copy' : 'move' },
        } as const);

  async function recordOf(at: Lab, side: Side, action: 'checkpoint' | 'restore'): Promise<ParkRecord | undefined> {
    const container = await inspectContainer(at.podman, side.workload.name);
    return recordsIn(checkpointDir(container), action)[0];
  }

  async function restore(
    kind: Kind,
    side: Side,
  ): Promise<{ answer_ms: number; command_ms: number; result: ActionResult }> {
    const at = await theLab();
    const restored = await timeRestore(side.workload, () => at.restore(side.workload, actionOf(kind)), ACTION_MS);
    check(restored.answers, side.answers);
    const { path, why, criu } = restored.result;
    if (path !== (kind === 'stock' ? 'stock' : 'pool') || !criu.reached)
      throw wrongWay(kind, `it went '${path}': ${why}`);
    return restored;
  }

  async function checkpoint(kind: Kind, side: Side): Promise<Pick<Outcome, 'values' | 'notes'>> {
    const at = await theLab();
    const { wall_ms, plugin_messages } = await at.checkpoint(side.workload, actionOf(kind));
    side.checkpointed = true;
    const notes = { dump_log: timeline(plugin_messages) };
    if (kind === 'stock') return { values: { checkpoint_ms: wall_ms }, notes };
    const container = await inspectContainer(at.podman, side.workload.name);
    const images = imagesIn(checkpointDir(container));
    const record = await recordOf(at, side, 'checkpoint');
    if (images.length === 0) throw wrongWay(kind, `nothing was parked${record === undefined ? '' : `: ${record.why}`}`);
    return {
      values: {
        checkpoint_ms: wall_ms,
        image_mib: images.reduce((sum, { bytes }) => sum + bytes, 0) / 2 ** 20,
        ...(record !== undefined && {
          parked_mib: record.parked_bytes / 2 ** 20,
          left_mib: leftBytes(record) / 2 ** 20,
        }),
      },
      notes: { ...notes, ...phaseNotes(record, 'dump_') },
    };
  }

  return {
    /**
     * What is to be checkpointed runs. For the stock way nothing else does: it would keep the driver warm. The stock way's
     * own container may run on meanwhile: with the pool the driver is warm anyway.
     */
    async prepare(kind) {
      const at = await theLab();
      for (const [name, side] of sides) {
        const inTheWay = name !== sideOf(kind) && (kind === 'stock' || stockOnce);
        if (inTheWay && (await running(side))) await side.workload.kill();
      }
      if (kind === 'stock') await at.pool()?.stop();
      else await labPoolOn(at);
      const side = await start(kind);
      if (kind === 'stock' && stockOnce && side.checkpointed) {
        if (await running(side)) await side.workload.kill();
      } else if (!(await running(side))) await restore(kind === 'stock' ? kind : 'hot-move', side);
    },
    async run(kind) {
      const at = await theLab();
      const side = await start(kind);
      const dumped = (await running(side)) ? await checkpoint(kind, side) : undefined;
      if (kind === 'staged') await at.startPool(); // ends the one that has it hot
      await sleep(SETTLE_MS); // what the checkpoint left to be done, as freeing the memory of what was killed, is not the restore's
      const { answer_ms, command_ms, result } = await restore(kind, side);
      const record = kind === 'stock' ? undefined : await recordOf(at, side, 'restore');
      if (kind !== 'stock' && record !== undefined && record.path !== PATHS[kind]) {
        throw wrongWay(kind, `it went '${record.path}'${record.why === '' ? '' : `: ${record.why}`}`);
      }
      return {
        verified: true,
        values: { restore_ms: answer_ms, podman_ms: command_ms, ...dumped?.values },
        notes: {
          why: result.why,
          ...dumped?.notes,
          ...(record !== undefined && { memory: recordLine(record) }),
          ...phaseNotes(record),
          restore_log: timeline(result.plugin_messages),
        },
      };
    },
    async leave() {
      const left = lab;
      lab = undefined;
      sides.clear();
      await left?.dispose();
    },
  };
}

/** For a run's notes: the pool's own figures. */
export const phaseNotes = (record: ParkRecord | undefined, prefix = ''): Record<string, number> =>
  record === undefined
    ? {}
    : Object.fromEntries(
        Object.entries(record.phases_us).map(([name, us]) => [`${prefix}${name}_ms`.toLowerCase(), us / 1000]),
      );

/** For a run's notes: when, in CRIU's own time, the plugin said what; the first words of each line tell which it is. */
export const timeline = (messages: readonly string[]): string =>
  messages
    .map(
      (line) =>
        `${/^\(([\d.]+)\)/.exec(line)?.[1] ?? '?'} ${messageOf(line)
          .replace(/^cuda_plugin: /, '')
          .slice(0, 60)}`,
    )
    .join(' | ')
    .slice(0, 2000);
