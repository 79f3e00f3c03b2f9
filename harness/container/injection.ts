// SPDX-License-Identifier: MIT
// How an environment gets to CRIU through podman and its runtime: as a `criu` of our own, first in PATH.
//
// podman 4.3.1 hands the runtime nothing but PATH at a checkpoint, and conmon nothing but PATH at a restore. A
// containers.conf with conmon_env_vars would reach CRIU at a restore only; it would take the place of
// the user's own files; and conmon hands its name on to the `podman container cleanup` that it runs when the container ends,
// days later. PATH reaches CRIU both times, in this podman and in newer ones. So: a folder with
// a `criu` that sets the environment, notes who ran it, and becomes the real one.
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { delimiter, join } from 'node:path';
import { isDryRun, quote, recordDry, which } from '../adapters/exec.ts';
import { unfitError } from '../errors.ts';
import type { CriuChoice } from './criu-tree.ts';

/** One start of CRIU during an action: who ran it, and how. */
export interface CriuStart {
  readonly pid: number;
  /** The name of the program that ran it: runc, crun, podman. */
  readonly parent: string;
  /** In a restore by conmon: podman's folder of the container. */
  readonly cwd: string;
  readonly args: string;
}

export interface Injection {
  /** Its folder; undefined in a dry run. */
  readonly dir: string | undefined;
  /** podman's PATH. */
  readonly path: string;
  /** What the wrapper saw; read it when the action has ended. */
  starts(): CriuStart[];
  /** Ends the CRIUs that have started and starts no other: the runtime and podman then fail, and tidy up, as they do when CRIU fails. */
  cancel(): void;
  dispose(): void;
}

/** CUDAPOOL_STATE_DIR of wire/options.def. */
export const stateDir = (env: Readonly<Record<string, string | undefined>> = process.env): string =>
  env.CUDAPOOL_STATE_DIR || '/var/lib/cudapool';

/** Not `/tmp` or `/run`: both may be mounted noexec. */
function privateDir(env: Readonly<Record<string, string>>): string {
  const parent = join(stateDir(env), 'exec');
  try {
    mkdirSync(parent, { recursive: true, mode: 0o755 });
    return mkdtempSync(join(parent, 'criu-'));
  } catch (cause) {
    throw unfitError(
      'ERR_CUDAPOOL_STATE_DIR',
      `cannot make a folder in ${parent}`,
      'name another one by CUDAPOOL_STATE_DIR',
      cause,
    );
  }
}

/** CRIU locks the network by iptables-restore; where that is missing it must not try. The user's own file comes first. */
function criuConfig(dir: string, env: Readonly<Record<string, string>>): string | undefined {
  if (which('iptables-restore') !== undefined) return undefined;
  const users = env.CRIU_CONFIG_FILE;
  const own = users === undefined || users === '' ? '' : readFileSync(users, 'utf8');
  if (/^\s*network-lock\b/m.test(own)) return undefined;
  const file = join(dir, 'criu.conf');
  writeFileSync(file, `${own.trimEnd()}\nnetwork-lock skip\n`);
  return file;
}

/** A CRIU whose restored process has died has ended long before. */
const CRIU_FAILS_MS = 1000;
/** ... and to stop when it is told to. */
const STOP_MS = 500;

export interface InjectionOptions {
  readonly criu: CriuChoice;
  /** For CRIU, its plugin, and what they execute. */
  readonly env: Readonly<Record<string, string>>;
  /** Put first in CRIU's PATH: where cuda-checkpoint is found. */
  readonly pathDirs?: readonly string[];
}

export function inject({ criu, env, pathDirs = [] }: InjectionOptions): Injection {
  const path = process.env.PATH ?? '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
  if (isDryRun()) {
    const dir = join(stateDir(env), 'exec', 'criu-XXXXXX');
    const vars = Object.entries(env).map(([name, value]) => `${name}=${quote([value])}`);
    recordDry(`write ${join(dir, 'criu')}: ${['exec env', ...vars, criu.binary].join(' ')} "$@"`);
    return { dir: undefined, path: [dir, path].join(delimiter), starts: () => [], cancel: () => {}, dispose: () => {} };
  }
  const dir = privateDir(env);
  const record = join(dir, 'starts');
  const cancelled = join(dir, 'cancelled');
  const config = criuConfig(dir, env);
  const all = {
    ...env,
    ...(config !== undefined && { CRIU_CONFIG_FILE: config }),
    ...(pathDirs.length > 0 && { PATH: [...pathDirs, path].join(delimiter) }),
  };
  const script = [
    '#!/bin/sh',
    '# By cudapool, for one checkpoint or restore; removed when that has ended.',
    'read -r parent </proc/$PPID/comm',
    `printf '%s %s %s\\t%s\\n' "$$" "$parent" "$PWD" "$*" >>${quote([record])}`,
    `[ ! -e ${quote([cancelled])} ] || exit 1`,
    ...Object.entries(all).map(([name, value]) => `export ${name}=${quote([value])}`),
    `exec ${quote([criu.binary])} "$@"`,
    '',
  ].join('\n');
  writeFileSync(join(dir, 'criu'), script, { mode: 0o755 });
  return {
    dir,
    path: [dir, path].join(delimiter),
    starts: () => readStarts(record),
    cancel: () => {
      writeFileSync(cancelled, '');
      for (const start of readStarts(record)) endCriu(start, [realpathSync(criu.binary), join(dir, 'criu')]);
    },
    dispose: () => rmSync(dir, { recursive: true, force: true }),
  };
}

/** A signal is not there yet when kill() returns: on a busy machine a process may well fork before it stops. */
function awaitStop(pid: number): void {
  const end = performance.now() + STOP_MS;
  const state = (): string | undefined => /\) (\S) /.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1];
  while (state() !== 'T' && performance.now() < end) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
}

/** The children of a process, of whichever of its threads. */
const childrenOf = (pid: number): number[] =>
  readdirSync(`/proc/${pid}/task`)
    .flatMap((tid) => readFileSync(`/proc/${pid}/task/${tid}/children`, 'utf8').split(' '))
    .filter((child) => child !== '')
    .map(Number);

/**
 * Ends a CRIU that runs one of these programs or scripts; the number may be another process's by now. A CRIU that is killed in a
 * restore leaves what it has restored waiting for ever. The runtime has the restored process made beside CRIU, as its own child:
 * when that dies, CRIU fails and takes the rest with it, or, late in a restore, waits for threads that it traces: then it may go.
 */
function endCriu({ pid, parent }: CriuStart, programs: readonly string[]): void {
  const isCriu = (): boolean => {
    const line = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, 2);
    return [readlinkSync(`/proc/${pid}/exe`), ...line].some((program) => programs.includes(program));
  };
  const unlessEnded = (work: () => void): void => {
    try {
      if (isCriu()) work();
    } catch {
      // it has ended
    }
  };
  const end = (patient: boolean): void => {
    process.kill(pid, 'SIGSTOP'); // so that it makes none while we look
    awaitStop(pid);
    const above = Number(/\) \S (\d+) /.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1]);
    const restored = parent === 'podman' ? [] : childrenOf(above).filter((child) => child !== pid);
    for (const child of restored) process.kill(child, 'SIGKILL');
    process.kill(pid, patient && restored.length > 0 ? 'SIGCONT' : 'SIGKILL');
  };
  unlessEnded(() => end(true));
  setTimeout(() => unlessEnded(() => end(false)), CRIU_FAILS_MS).unref();
}

function readStarts(record: string): CriuStart[] {
  let text: string;
  try {
    text = readFileSync(record, 'utf8');
  } catch {
    return []; // nobody ran it
  }
  return [...text.matchAll(/^(\d+) (\S*) ([^\t\n]*)\t(.*)$/gm)].map(([, pid, parent, cwd, args]) => ({
    pid: Number(pid),
    parent: parent ?? '',
    cwd: cwd ?? '',
    args: args ?? '',
  }));
}
