// SPDX-License-Identifier: MIT
// Programs that live side by side and work in turns: they say READY, and answer each line that they are told with one of JSON.
import { spawn } from 'node:child_process';
import { setMaxListeners } from 'node:events';
import { createInterface } from 'node:readline';
import { CudapoolError } from '../errors.ts';
import { cancelSignal, interrupted, lastLines, quote } from './exec.ts';

export interface Player {
  /** Tells it a line, and returns what it answers. One at a time. */
  turn(line: string, timeoutMs: number): Promise<unknown>;
  /** Ends it, and returns when it has ended. */
  end(): Promise<void>;
}

export interface PlayerOptions {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly readyMs: number;
}

const END_MS = 5000;
const MAX_STDERR = 1 << 14;

/** Returns when it has said READY. It ends with this process in any case: its standard input does. */
export async function startPlayer(command: readonly string[], options: PlayerOptions): Promise<Player> {
  if (cancelSignal().aborted) throw interrupted();
  const [file = '', ...args] = command;
  setMaxListeners(0, cancelSignal()); // each of them listens, and there may be dozens
  const child = spawn(file, args, {
    env: { ...process.env, ...options.env },
    signal: cancelSignal(),
    killSignal: 'SIGKILL',
  });
  let complaint = '';
  let waiting: { readonly hear: (line: string) => void; readonly fail: (why: string) => void } | undefined;
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  child.stderr.on('data', (chunk: Buffer) => {
    complaint = `${complaint}${chunk.toString()}`.slice(-MAX_STDERR);
  });
  child.stdin.on('error', () => {}); // its end is reported by 'close'
  child.once('error', (error) => waiting?.fail(error.message));
  child.once('close', () => waiting?.fail('it ended'));
  createInterface({ input: child.stdout }).on('line', (line) => waiting?.hear(line));

  /** The first line that `take` returns something for; a framework may print others. */
  function next<T>(what: string, timeoutMs: number, take: (line: string) => T | undefined): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const done = (): void => {
        clearTimeout(timer);
        waiting = undefined;
      };
      const fail = (why: string): void => {
        done();
        const error = new CudapoolError('ERR_CUDAPOOL_WORKLOAD', `${quote(command)} ${what}: ${why}`, {
          lines: lastLines(complaint),
          hint: 'run `cudapool check`: it says what is wrong with the driver',
        });
        reject(cancelSignal().aborted ? interrupted() : error);
      };
      const timer = setTimeout(() => fail(`no answer within ${timeoutMs / 1000} s`), timeoutMs);
      const hear = (line: string): void => {
        const taken = take(line);
        if (taken === undefined) return;
        done();
        resolve(taken);
      };
      waiting = { fail, hear };
      if (child.exitCode !== null || child.signalCode !== null) fail('it ended');
    });
  }

  function parsed(line: string): unknown {
    if (!line.startsWith('{')) return undefined;
    try {
      return JSON.parse(line);
    } catch {
      return undefined;
    }
  }

  const player: Player = {
    turn(line, timeoutMs) {
      child.stdin.write(`${line}\n`);
      return next(`did not answer '${line}'`, timeoutMs, parsed);
    },
    async end() {
      child.stdin.end();
      const hard = setTimeout(() => child.kill('SIGKILL'), END_MS);
      await ended;
      clearTimeout(hard);
    },
  };
  try {
    await next('did not become ready', options.readyMs, (line) => (line === 'READY' ? true : undefined));
    return player;
  } catch (thrown) {
    child.kill('SIGKILL');
    throw thrown;
  }
}
