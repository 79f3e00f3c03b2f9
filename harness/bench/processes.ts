// SPDX-License-Identifier: MIT
// Workloads as plain processes: started, asked, dumped and restored by CRIU itself, and ended for certain.
import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type CriuRun, criuDump, criuRestore } from '../adapters/criu-run.ts';
import { cancelSignal, interrupted, lastLines } from '../adapters/exec.ts';
import { type Answer, type Answers, ask, expectedChecksum, forgetAnswers } from '../container/ask.ts';
import { CudapoolError } from '../errors.ts';
import { built } from '../paths.ts';

export interface WorkloadOptions {
  readonly dir: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** GPU memory of each process. */
  readonly memoryMib: number;
  readonly processes?: number;
  /** When it uses CUDA first; default: at the start. */
  readonly when?: 'start' | 'ask';
  readonly seed?: number;
  /** Another program than gpu_app, which is told --dir only. */
  readonly command?: readonly string[];
  readonly startMs?: number;
}

export interface Workload {
  readonly pid: number;
  readonly dir: string;
  readonly processes: number;
  readonly memoryMib: number;
  readonly seed: number;
}

/** A workload with its checkpoint, and what it answered before. */
export interface Dumped {
  readonly workload: Workload;
  readonly answers: readonly Answer[];
}

const START_MS = 60_000;
const END_MS = 10_000;
const WORDS_PER_MIB = 1 << 18;
/** Above this the checksum that memory must have is not computed on the host, but taken from before the dump. */
const COMPUTED_MIB = 64;

/** Whether a process of this id exists and is not a zombie. */
export function alive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

async function until(condition: () => boolean, limitMs: number): Promise<boolean> {
  const end = performance.now() + limitMs;
  while (!condition()) {
    if (cancelSignal().aborted) throw interrupted();
    if (performance.now() > end) return false;
    await sleep(2);
  }
  return true;
}

/** Starts gpu_app in a session of its own, and returns when all of its processes can be asked. */
export async function startWorkload(options: WorkloadOptions): Promise<Workload> {
  const { dir, memoryMib, processes = 1, when = 'start', seed = 1 } = options;
  mkdirSync(dir, { recursive: true });
  forgetAnswers(dir, processes);
  rmSync(join(dir, 'ask'), { force: true });
  const log = join(dir, 'log');
  const output = openSync(log, 'w');
  const numbers = ['--memory', memoryMib, '--processes', processes, '--seed', seed].map(String);
  const gpuApp = [join(built.workloads, 'gpu_app'), '--when', when, ...numbers];
  const app = [...(options.command ?? gpuApp), '--dir', dir];
  const reaper = spawn(join(built.workloads, 'reaper'), ['--session', ...app], {
    cwd: '/',
    env: { ...process.env, ...options.env },
    detached: true, // an interrupt from the terminal is for us: we end the workload
    stdio: ['ignore', output, output],
  });
  closeSync(output);
  reaper.on('error', () => {}); // shows as a process that did not become ready
  reaper.unref();
  const text = (): string => (existsSync(log) ? readFileSync(log, 'utf8') : '');
  const ended = (): boolean => reaper.exitCode !== null || reaper.pid === undefined;
  try {
    const ready = await until(() => text().includes('READY') || ended(), options.startMs ?? START_MS);
    const pid = ended() ? undefined : childOf(reaper.pid as number);
    if (ready && pid !== undefined) return { pid, dir, processes, memoryMib, seed };
  } catch (thrown) {
    await endChild(reaper.pid);
    throw thrown;
  }
  await endChild(reaper.pid);
  throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', 'the workload did not start', {
    lines: lastLines(text()),
    hint: 'run `cudapool check`: it says what is wrong with the driver',
  });
}

/** The one child of a reaper. */
function childOf(pid: number): number | undefined {
  try {
    const first = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ')[0];
    return first ? Number(first) : undefined;
  } catch {
    return undefined; // it has ended
  }
}

async function endChild(reaper: number | undefined): Promise<void> {
  const pid = reaper === undefined ? undefined : childOf(reaper);
  if (pid !== undefined) await endTree(pid);
}

/** Whether any process of this group is there, zombies included: their ids are not free. */
function groupExists(pid: number): boolean {
  try {
    process.kill(-pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Ends the process group that a workload is, whether it was restored or not, and waits until it is gone. */
export async function endTree(pid: number): Promise<void> {
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    return; // it is gone already
  }
  if (await until(() => !groupExists(pid), END_MS)) return;
  throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', `process group ${pid} does not end`, {
    hint: `see what it waits for: cat /proc/${pid}/stack`,
  });
}

/** Whether these are the answers of a workload that has kept its memory; `before`: what it said before the dump. */
export function checkAnswers(
  workload: Pick<Workload, 'memoryMib' | 'seed'> & { readonly filledMib?: number; readonly pieces?: number },
  answers: readonly Answer[],
  before?: readonly Answer[],
): void {
  for (const { index, words, seed, checksum } of answers) {
    const wrong = (what: string): CudapoolError =>
      new CudapoolError('ERR_CUDAPOOL_WRONG_ANSWER', `process ${index} of the workload: ${what}`, {
        hint: 'the restored process does not hold the memory that was dumped: this must never happen',
      });
    if (words !== workload.memoryMib * WORDS_PER_MIB) throw wrong(`it has ${words} words of GPU memory`);
    if (seed !== workload.seed + index) throw wrong(`its seed is ${seed}`);
    const earlier = before?.[index]?.checksum;
    if (earlier !== undefined && checksum !== earlier) throw wrong(`its checksum was ${earlier} and is ${checksum}`);
    if (words > COMPUTED_MIB * WORDS_PER_MIB) continue;
    const { pieces = 1, filledMib = workload.memoryMib } = workload;
    const expected = expectedFor(words, seed, pieces, filledMib * WORDS_PER_MIB);
    if (checksum !== expected) throw wrong(`its checksum is ${checksum}, and must be ${expected}`);
  }
}

const computed = new Map<string, string>();
function expectedFor(words: number, seed: number, pieces: number, filled: number): string {
  const key = `${words} ${seed} ${pieces} ${filled}`;
  const known = computed.get(key) ?? (words === 0 ? '0'.repeat(16) : expectedChecksum(words, seed, { pieces, filled }));
  computed.set(key, known);
  return known;
}

export async function askWorkload(workload: Workload, timeoutMs = 60_000): Promise<Answers> {
  return ask(workload.dir, { processes: workload.processes, timeoutMs });
}

export interface TimedRestore {
  /** From the start of the command to its end. */
  readonly command_ms: number;
  /** From the start of the command to the last process's right answer. */
  readonly answer_ms: number;
  readonly answers: readonly Answer[];
}

/** What a restore says of itself: performance.now() at the command's start, and how long that took. */
export interface CommandTimes {
  readonly started_ms: number;
  readonly wall_ms: number;
}

/**
 * Restores, and has the workload asked from before the command on: the time ends with the answer, whether that
 * comes before or after the command's end.
 */
export async function timeRestore<T extends CommandTimes>(
  workload: { readonly dir: string; readonly processes: number },
  restore: () => Promise<T>,
  timeoutMs: number,
): Promise<TimedRestore & { readonly result: T }> {
  forgetAnswers(workload.dir, workload.processes);
  const abandoned = new AbortController();
  const asking = ask(workload.dir, { processes: workload.processes, timeoutMs, signal: abandoned.signal }).then(
    ({ answers }) => ({ answers, at: performance.now() }),
  );
  asking.catch(() => {}); // reported below, after the command's own failure
  let result: T;
  try {
    result = await restore();
  } catch (thrown) {
    abandoned.abort();
    throw thrown;
  }
  const { answers, at } = await asking;
  return { result, command_ms: result.wall_ms, answer_ms: at - result.started_ms, answers };
}

export async function dumpWorkload(run: CriuRun, workload: Workload): Promise<number> {
  rmSync(run.images, { recursive: true, force: true });
  mkdirSync(run.images, { recursive: true });
  const { wall_ms } = await criuDump(run, workload.pid);
  // CRIU has killed it; its processes must have been reaped before their ids can be used again.
  if (!(await until(() => !groupExists(workload.pid), END_MS))) {
    throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', `process ${workload.pid} is still there after its dump`);
  }
  return wall_ms;
}

export const restoreWorkload = (run: CriuRun, workload: Workload): Promise<TimedRestore> =>
  timeRestore(workload, () => criuRestore(run), run.timeoutMs);

/** Starts a workload, keeps what it answers, and dumps it; what fails leaves no process. */
export async function checkpointed(run: CriuRun, options: WorkloadOptions): Promise<Dumped> {
  const workload = await startWorkload(options);
  try {
    const { answers } = await askWorkload(workload);
    checkAnswers(workload, answers);
    await dumpWorkload(run, workload);
    return { workload, answers };
  } catch (thrown) {
    await endTree(workload.pid);
    throw thrown;
  }
}
