// SPDX-License-Identifier: MIT
// workloads/proc_watch: every process creation and execution on this host, as the kernel tells it.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { CudapoolError, unfitError } from '../errors.ts';
import { built } from '../paths.ts';
import { cancelSignal, interrupted } from './exec.ts';

export type ProcEvent =
  | { readonly kind: 'fork'; readonly parent: number; readonly pid: number }
  | { readonly kind: 'exec'; readonly pid: number; readonly name: string }
  | { readonly kind: 'exit'; readonly pid: number }
  /** One of the watched files is being executed. */
  | { readonly kind: 'ran'; readonly pid: number };

export interface ProcReport {
  readonly events: readonly ProcEvent[];
  /** The kernel dropped events: nothing can be concluded. */
  readonly lost: boolean;
}

export interface ProcWatch {
  /** Ends the watching; everything that happened until now is in the report. */
  stop(): Promise<ProcReport>;
}

const READY_MS = 5000;
const END_MS = 5000;
/** Beyond this many events the watching is given up as lost. */
const MAX_EVENTS = 1_000_000;

function parseEvent(line: string): ProcEvent | undefined {
  const [kind, first, second] = line.split(' ');
  const id = Number(first);
  if (kind === 'fork') return { kind, parent: id, pid: Number(second) };
  if (kind === 'exec') return { kind, pid: id, name: line.slice(line.indexOf(' ', 5) + 1) };
  if (kind === 'exit' || kind === 'ran') return { kind, pid: id };
  return undefined;
}

function within<T>(
  ms: number,
  what: string,
  start: (resolve: (value: T) => void, reject: (why: unknown) => void) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new CudapoolError('ERR_CUDAPOOL_TIMEOUT', `proc_watch did not ${what} within ${ms / 1000} s`)),
      ms,
    );
    const settle =
      <A>(then: (value: A) => void) =>
      (value: A): void => {
        clearTimeout(timer);
        then(value);
      };
    start(settle(resolve), settle(reject));
  });
}

/** Starts to watch, these files' executions in particular; when this resolves, nothing is missed any more. */
export async function watchProcesses(files: readonly string[] = []): Promise<ProcWatch> {
  if (cancelSignal().aborted) throw interrupted();
  const program = join(built.workloads, 'proc_watch');
  const child: ChildProcessWithoutNullStreams = spawn(program, [...files], {
    signal: cancelSignal(),
    killSignal: 'SIGKILL',
  });
  const events: ProcEvent[] = [];
  let lost = false;
  let complaint = '';
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  child.stderr.on('data', (chunk: Buffer) => {
    complaint = `${complaint}${chunk.toString()}`.slice(-1000);
  });
  child.stdin.on('error', () => {}); // its end is reported by 'close'
  const lines = createInterface({ input: child.stdout });
  try {
    await within<void>(READY_MS, 'become ready', (resolve, reject) => {
      const failed = (cause?: unknown): void =>
        reject(
          unfitError(
            'ERR_CUDAPOOL_PROC_WATCH',
            `the processes of this host cannot be watched: ${complaint.trim() || 'proc_watch did not start'}`,
            'run `cudapool setup`, and measure as root outside of a container',
            cause,
          ),
        );
      child.once('error', failed);
      child.once('close', () => failed());
      lines.on('line', (line) => {
        if (line === 'ready') return resolve();
        if (line === 'lost' || events.length >= MAX_EVENTS) {
          lost = true;
          return;
        }
        const event = parseEvent(line);
        if (event !== undefined) events.push(event);
      });
    });
  } catch (thrown) {
    child.kill('SIGKILL');
    if (cancelSignal().aborted) throw interrupted();
    throw thrown;
  }
  return {
    async stop() {
      child.stdin.end();
      await within<void>(END_MS, 'end', (resolve) => {
        ended.then(resolve);
      }).finally(() => child.kill('SIGKILL'));
      return { events, lost };
    },
  };
}

export interface Executed {
  /** Executions of the watched files. */
  readonly watched: number;
  /** What processes called `root`, and their descendants, executed: names in order; '?' ended too soon to be named. */
  readonly names: readonly string[];
}

/**
 * What was executed by descendants of `ancestor`, which lives throughout; other people's processes do not count. A
 * process stays a descendant when its parent has ended.
 */
export function executedUnder(report: ProcReport, ancestor: number, root: string): Executed {
  const ours = new Set([ancestor]);
  const ever = new Set([ancestor]);
  const under = new Set<number>();
  const names: string[] = [];
  for (const event of report.events) {
    if (event.kind === 'fork') {
      for (const set of [ours, under]) {
        if (set.has(event.parent)) set.add(event.pid);
        else set.delete(event.pid); // a number that is used again
      }
      if (ours.has(event.pid)) ever.add(event.pid);
    } else if (event.kind === 'exec') {
      if (under.has(event.pid)) names.push(event.name);
      else if (ours.has(event.pid) && event.name === root) under.add(event.pid);
    }
  }
  // In no order with the other events, hence `ever`.
  const watched = report.events.filter((event) => event.kind === 'ran' && ever.has(event.pid)).length;
  return { watched, names };
}
