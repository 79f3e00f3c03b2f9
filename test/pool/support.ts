// SPDX-License-Identifier: MIT
// For the tests of this room: applications that show whether they run, and clients that are told what to say.
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import { type Pool, type SoftCuda, softCuda, startPool, tempDir, until } from '../support/index.ts';

/** Negative errnos as the pool sends them. */
export const ERRNO = {
  EPERM: -1,
  ESRCH: -3,
  EIO: -5,
  EACCES: -13,
  EBUSY: -16,
  ENODEV: -19,
  EREMOTEIO: -121,
  ETIMEDOUT: -110,
} as const;
/** enum cudapool_path. */
export const PATH = { stock: 0, parked: 1, hotMove: 2, hotCopy: 3, loaded: 4, returned: 5 } as const;
export const STATE = { running: 0, locked: 1, checkpointed: 2 } as const;

export interface App {
  readonly pid: number;
  readonly child: ChildProcess;
  /** The process that says so, where that is not the one that was started. */
  tickPid(): number;
  /** How often it has written GPU memory and read it back unharmed. */
  ticks(): number;
  /** Passes if it goes on now (within the limit). */
  runs(what: string, limitMs?: number): Promise<void>;
  /** Passes if it stands still in a CUDA call. */
  stands(what: string): Promise<void>;
}

/** A CUDA application (app.c, or another of this folder with arguments); ends with the test. */
export async function startApp(t: Test, programs: string, soft: SoftCuda, command = ['app']): Promise<App> {
  const child = spawn(join(programs, command[0] as string), command.slice(1), {
    env: { ...process.env, ...soft.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  let ticks = 0;
  let tickPid = 0;
  let said = '';
  createInterface({ input: child.stdout }).on('line', (line) => {
    ticks = Number(line.split(' ')[1]);
    tickPid = Number(line.split(' ')[2] ?? 0);
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  const app: App = {
    pid: child.pid as number,
    child,
    ticks: () => ticks,
    tickPid: () => tickPid,
    runs: async (what, limitMs = 10_000) => {
      const from = ticks;
      // More than one: what was in the pipe when it stopped proves nothing.
      const went = await until(what, () => ticks > from + 5 || child.exitCode !== null, limitMs).catch(() => false);
      t.ok(went && child.exitCode === null, what, said === '' ? {} : { said });
    },
    stands: async (what) => {
      await sleep(60);
      const from = ticks;
      await sleep(120);
      t.equal(ticks, from, what);
    },
  };
  await until('the application starts', () => ticks > 0 || child.exitCode !== null);
  if (child.exitCode !== null) throw new Error(`app ended with ${child.exitCode}: ${said}`);
  return app;
}

export interface Answer {
  /** The line as it came. */
  line: string;
  /** 0 or a negative errno, where the line has one. */
  error: number;
  /** The driver's result. */
  cu: number;
  value: number;
  generation: number;
  /** enum cudapool_path, and bytes. */
  path: number;
  parked: number;
  left: number;
}

const field = (line: string, name: string): number => {
  const found = new RegExp(`\\b${name} (-?\\d+)`).exec(line);
  return found === null ? 0 : Number(found[1]);
};

export interface Client {
  readonly pid: number;
  /** Says one line (client.c says which there are) and waits for the answer to it. */
  say(line: string, limitMs?: number): Promise<Answer>;
  /** As CRIU dies when the machine is out of memory. */
  kill(): Promise<void>;
}

/** `name` 'criu' is the same program under the name by which the pool knows CRIU. */
export function startClient(
  t: Test,
  programs: string,
  socket: string,
  name: 'client' | 'criu' = 'client',
  wrap: string[] = [],
): Client {
  const command = [...wrap, join(programs, name), socket];
  const child = spawn(command[0] as string, command.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] });
  const gone = new Promise<void>((resolve) => child.once('close', () => resolve()));
  t.teardown(async () => {
    child.kill('SIGKILL');
    await gone;
  });
  child.stdin.on('error', () => {}); // it may be dead on purpose
  const heard: string[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => heard.push(line));
  // A drop-in's child answers twice: to connecting, and to the action.
  let due = 0;
  return {
    pid: child.pid as number,
    say: async (line, limitMs = 15_000) => {
      due += line.startsWith('child ') ? 2 : 1;
      child.stdin.write(`${line}\n`);
      await until(`an answer to '${line}'`, () => heard.length >= due || child.exitCode !== null, limitMs, 2);
      const answer = heard[due - 1] ?? '';
      return {
        line: answer,
        error: field(answer, 'error'),
        cu: field(answer, 'cu'),
        value: field(answer, 'value'),
        generation: field(answer, 'generation'),
        path: field(answer, 'path'),
        parked: field(answer, 'parked'),
        left: field(answer, 'left'),
      };
    },
    kill: async () => {
      child.kill('SIGKILL');
      await gone;
    },
  };
}

export interface Stage {
  soft: SoftCuda;
  pool: Pool;
  app: App;
}
export interface StageOptions {
  args?: string[];
  env?: Record<string, string>;
  /** startApp's. */
  command?: string[];
}

/** A pool, and an application beside it. */
export async function startStage(t: Test, programs: string, options: StageOptions = {}): Promise<Stage> {
  const soft = softCuda(t);
  const pool = await startPool(t, soft, { args: options.args ?? [], env: options.env ?? {} });
  return { soft, pool, app: await startApp(t, programs, soft, options.command) };
}

export interface Scene extends Stage {
  criu: Client;
}
export interface SceneOptions extends StageOptions {
  /** As what it connects; '': not yet. */
  role?: string;
}

/** The same, and a CRIU; the pool logs what it does. */
export async function startScene(t: Test, programs: string, options: SceneOptions = {}): Promise<Scene> {
  const { role = 'plugin', args = [] } = options;
  const stage = await startStage(t, programs, { ...options, args: ['--log', '3', ...args] });
  const criu = startClient(t, programs, stage.pool.socket, 'criu');
  if (role !== '') await criu.say(`connect ${role}`);
  return { ...stage, criu };
}

export interface ParkScene extends Scene {
  /** CRIU's image directory. */
  images: string;
  /** The pool's own. */
  own: string;
}
export interface ParkOptions extends Omit<SceneOptions, 'command'> {
  /** What the shim does (shim.c), and how many pieces of 2 MiB it has. */
  mode?: string;
  pieces?: number;
  images?: string;
}

/** The same with the small shim of shim.c in the application; a CRIU that has connected names its directory. */
export async function startParkScene(t: Test, programs: string, options: ParkOptions = {}): Promise<ParkScene> {
  const { mode = 'honest', pieces = 3, images = tempDir(t), env, ...rest } = options;
  const own = tempDir(t);
  const command = ['shim', mode, String(pieces)];
  const scene = await startScene(t, programs, { ...rest, command, env: { CUDAPOOL_IMAGE_DIR: own, ...env } });
  if (options.role !== '')
    t.equal((await scene.criu.say(`images dump ${images}`)).error, 0, 'CRIU names its directory');
  return { ...scene, images, own };
}

/** The environment of a pool that needs `ms` to close a file that slowclose.c thinks large. */
export const slowClose = (programs: string, dir: string, ms: number): Record<string, string> => ({
  LD_PRELOAD: join(programs, 'slowclose.so'),
  SLOWCLOSE_DIR: dir,
  SLOWCLOSE_MS: String(ms),
  // A daemon with sanitizers wants to be the first library otherwise.
  ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:verify_asan_link_order=0`,
});

/** What `cudapoold --status` prints, as far as these tests look at it; pool/status.h describes it. */
export interface Status {
  pid: number;
  memory_kb: number;
  descriptors: number;
  worker: {
    pid: number;
    state: string;
    generation: number;
    replaced: number;
    memory_kb: number;
    descriptors: number;
    text: string;
    [key: string]: unknown;
  };
  actions: { queued: number; running: number };
  held_count: number;
  held: {
    pid: number;
    owner_pid: number;
    locked: boolean;
    checkpointed: boolean;
    parked: boolean;
    under_way: string | null;
    giving_back: boolean;
    failed_attempts: number;
  }[];
  park_count: number;
  parks: { pid: number; state: string; tier: string; bytes: number; image_bytes: number; path: string }[];
  given_back: { ok: number; failed: number };
  connections: { open: number; accepted: number; refused: number; dropped: number };
  errors: { text: string }[];
  [key: string]: unknown;
}

export const statusOf = async (pool: Pool): Promise<Status> => (await pool.status()) as unknown as Status;

/** The names of images; and those of the ones that are not complete, too. */
export const imagesIn = (dir: string): string[] => readdirSync(dir).filter((name) => name.endsWith('.img'));
export const allOfImagesIn = (dir: string): string[] => readdirSync(dir).filter((name) => name.includes('.img'));

/** The software driver's faults on request, for the processes of this device directory. */
export function fault(soft: SoftCuda, spec: string): void {
  writeFileSync(join(soft.dir, 'faults'), spec);
}

/** Passes when the pool says that it holds nothing any more. */
export async function holdsNothing(t: Test, pool: Pool, what: string, limitMs = 10_000): Promise<void> {
  const ok = await until(what, async () => (await statusOf(pool)).held_count === 0, limitMs, 30).catch(() => false);
  t.ok(ok, what);
}

/** Stops a process; a signal is not there yet when kill returns. */
export async function stop(pid: number): Promise<void> {
  process.kill(pid, 'SIGSTOP');
  const state = (): string | undefined => /\) (\S)/.exec(readFileSync(`/proc/${pid}/stat`, 'latin1'))?.[1];
  await until('the process is stopped', async () => state() === 'T', 5000, 5);
}

/** Waits until the worker has an action in hand. */
export const acting = (pool: Pool): Promise<boolean> =>
  until('an action is under way', async () => (await statusOf(pool)).actions.running > 0, 5000, 5);
