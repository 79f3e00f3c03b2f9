// SPDX-License-Identifier: MIT
// Runs every external program: argument arrays, a time limit, cancellation, dry runs; what it printed stays in the error.
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { CudapoolError, EXIT, unfitError } from '../errors.ts';
import { print } from '../output.ts';

export interface ExecOptions {
  /** Required: nothing waits for ever. */
  timeoutMs: number;
  cwd?: string;
  /** Added to this process's environment; undefined removes a name. */
  env?: Record<string, string | undefined>;
  /** Written to its standard input; without it that is /dev/null. */
  input?: string;
  /** It changes nothing, so it runs in a dry run too. */
  readOnly?: boolean;
  /** false: hand back a failed run instead of throwing. A program that is missing or too slow throws either way. */
  reject?: boolean;
  /** What to install when the program is missing. */
  package?: string;
  /** Called for each line of stdout and stderr as it comes. */
  onLine?: (line: string, stream: 'stdout' | 'stderr') => void;
  /** Its output goes to the user's terminal (stderr, so that stdout stays data), and is not kept. */
  show?: boolean;
  /** Bytes of output that are allowed. Default: 16 MiB. */
  maxOutput?: number;
  /** How it is asked to end, where SIGTERM to its group would leave something half done. Its group is killed if it does not. */
  cancel?: () => void;
}

export interface ExecResult {
  command: string;
  exitCode: number;
  stdout: string;
  stderr: string;
  /** performance.now() just before it was started. */
  started_ms: number;
  wall_ms: number;
  /** true: nothing was run (dry run); exitCode is 0 and the output empty. */
  dry: boolean;
}

const MAX_OUTPUT = 16 << 20;
/** Between asking a program to end and ending it. One that is asked by `cancel` has others to end first. */
const GRACE_MS = 3000;
const CANCEL_GRACE_MS = 20_000;

const state: { dry: boolean; quiet: boolean; recorded: string[]; aborter: AbortController; running: Set<number> } = {
  dry: false,
  quiet: false,
  recorded: [],
  aborter: new AbortController(),
  running: new Set(),
};

/** Signals a program and what it started: each has a process group of its own. */
function signalGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-pid, signal);
  } catch {
    // it is gone
  }
}

process.on('exit', () => {
  for (const pid of state.running) signalGroup(pid, 'SIGTERM');
});

/** From now on commands are printed on stdout instead of run, but for those that only look. `quiet`: kept, not printed. */
export function setDryRun(on: boolean, quiet = false): void {
  state.dry = on;
  state.quiet = quiet;
  state.recorded = [];
}
export const isDryRun = (): boolean => state.dry;
/** The commands that a dry run would have run. */
export const recordedCommands = (): readonly string[] => state.recorded;

/** Ends every program under way and refuses to start another; the command then exits 130. */
export function cancelAll(): void {
  state.aborter.abort();
}
/** Aborted when the user interrupts; waits that are not programs should listen to it. */
export const cancelSignal = (): AbortSignal => state.aborter.signal;

/**
 * For what must be put in order after an interruption, too: `work` runs programs as if there had been none. Another
 * interruption ends them.
 */
export async function tidyUp<T>(work: () => Promise<T>): Promise<T> {
  const before = state.aborter;
  if (before.signal.aborted) state.aborter = new AbortController();
  try {
    return await work();
  } finally {
    if (before.signal.aborted) state.aborter = before;
  }
}

export const interrupted = (): CudapoolError =>
  new CudapoolError('ERR_CUDAPOOL_INTERRUPTED', 'interrupted', { exit: EXIT.INTERRUPTED });

/** A command as it would be typed in a shell. */
export function quote(argv: readonly string[]): string {
  return argv.map((arg) => (/^[\w@%+=:,./-]+$/.test(arg) ? arg : `'${arg.replaceAll("'", "'\\''")}'`)).join(' ');
}

/** The program's path, as PATH gives it; undefined if it is not there. */
export function which(program: string, path = process.env.PATH ?? ''): string | undefined {
  if (program.includes('/')) return isExecutable(program) ? program : undefined;
  for (const dir of path.split(delimiter)) {
    const candidate = join(dir === '' ? '.' : dir, program);
    if (isExecutable(candidate)) return candidate;
  }
  return undefined;
}

export function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** The last `count` lines that are not empty. */
export const lastLines = (text: string, count = 12): string[] =>
  text
    .split('\n')
    .map((line) => line.trimEnd())
    .filter((line) => line !== '')
    .slice(-count);

/** Records what a dry run leaves out; for changes that are not made by a program ("write FILE"). */
export function recordDry(text: string): void {
  state.recorded.push(text);
  if (!state.quiet) print(text);
}

function describe(file: string, args: readonly string[], options: ExecOptions): string {
  const env = Object.entries(options.env ?? {})
    .filter((entry): entry is [string, string] => entry[1] !== undefined)
    .map(([name, value]) => `${name}=${quote([value])}`);
  const line = [...env, quote([file, ...args])].join(' ');
  return options.cwd === undefined ? line : `cd ${quote([options.cwd])} && ${line}`;
}

export async function exec(file: string, args: readonly string[], options: ExecOptions): Promise<ExecResult> {
  const command = quote([file, ...args]);
  if (state.aborter.signal.aborted) throw interrupted();
  if (state.dry && options.readOnly !== true) {
    recordDry(describe(file, args, options));
    return { command, exitCode: 0, stdout: '', stderr: '', started_ms: 0, wall_ms: 0, dry: true };
  }
  const { execa } = await import('execa');
  if (state.aborter.signal.aborted) throw interrupted(); // meanwhile
  const started = performance.now();
  const output = options.show === true ? ([2] as const) : 'pipe';
  const child = execa(file, [...args], {
    ...(options.cwd !== undefined && { cwd: options.cwd }),
    env: options.env ?? {},
    ...(options.input === undefined ? { stdin: 'ignore' as const } : { input: options.input }),
    stdout: output,
    stderr: output,
    detached: true, // a group of its own: what it started must not outlive it, nor keep its output open
    maxBuffer: options.maxOutput ?? MAX_OUTPUT,
    reject: false,
  });
  const watching: Promise<void>[] = [];
  for (const stream of ['stdout', 'stderr'] as const) {
    if (options.onLine === undefined || options.show === true) break;
    watching.push(
      (async () => {
        for await (const line of child.iterable({ from: stream })) options.onLine?.(String(line), stream);
      })().catch(() => {}), // the child's own end is reported below
    );
  }
  const { pid } = child;
  let ended: 'timeout' | 'interruption' | undefined;
  let force: NodeJS.Timeout | undefined;
  const end = (why: 'timeout' | 'interruption'): void => {
    if (pid === undefined || ended !== undefined) return;
    ended = why;
    if (options.cancel === undefined) signalGroup(pid, 'SIGTERM');
    else options.cancel();
    force = setTimeout(() => signalGroup(pid, 'SIGKILL'), options.cancel === undefined ? GRACE_MS : CANCEL_GRACE_MS);
  };
  const limit = setTimeout(() => end('timeout'), options.timeoutMs);
  const interrupt = (): void => end('interruption');
  state.aborter.signal.addEventListener('abort', interrupt, { once: true });
  if (pid !== undefined) state.running.add(pid);
  const done = await child;
  await Promise.all(watching);
  clearTimeout(limit);
  clearTimeout(force);
  state.aborter.signal.removeEventListener('abort', interrupt);
  if (pid !== undefined) state.running.delete(pid);
  const stdout = typeof done.stdout === 'string' ? done.stdout : '';
  const stderr = typeof done.stderr === 'string' ? done.stderr : '';
  const wall_ms = performance.now() - started;

  if (ended === 'interruption') throw interrupted();
  const kept = { command, stdout, stderr, wall_ms };
  if (ended === 'timeout') {
    throw new CudapoolError('ERR_CUDAPOOL_TIMEOUT', `${file} did not end within ${options.timeoutMs / 1000} s`, {
      details: kept,
      lines: lastLines(stderr || stdout),
      hint: `to see what it waits for, run: ${command}`,
    });
  }
  if (done.isMaxBuffer) {
    throw new CudapoolError(
      'ERR_CUDAPOOL_COMMAND',
      `${file} printed more than ${options.maxOutput ?? MAX_OUTPUT} bytes`,
      {
        cause: done,
        hint: `see what it prints: ${command}`,
      },
    );
  }
  if (done.exitCode === undefined && done.signal === undefined) {
    const missing = (done as { code?: string }).code === 'ENOENT' && which(file) === undefined;
    if (missing) {
      throw unfitError(
        'ERR_CUDAPOOL_TOOL_MISSING',
        `${file} is not installed, or not in PATH`,
        `apt-get install ${options.package ?? file}`,
        done,
      );
    }
    throw new CudapoolError('ERR_CUDAPOOL_COMMAND', `${file} could not be run: ${done.shortMessage ?? ''}`, {
      cause: done,
      details: kept,
      lines: lastLines(stderr || stdout),
    });
  }
  const exitCode = done.exitCode ?? 128;
  if (exitCode !== 0 && options.reject !== false) {
    const how = done.signal === undefined ? `exit code ${exitCode}` : `killed by ${done.signal}`;
    throw new CudapoolError('ERR_CUDAPOOL_COMMAND', `${command} failed (${how})`, {
      details: { ...kept, exitCode, signal: done.signal },
      lines: lastLines(stderr || stdout),
    });
  }
  return { command, exitCode, stdout, stderr, started_ms: started, wall_ms, dry: false };
}

/** `exec` for programs that only look. */
export const look = (file: string, args: readonly string[], options: Partial<ExecOptions> = {}): Promise<ExecResult> =>
  exec(file, args, { timeoutMs: 15_000, ...options, readOnly: true });
