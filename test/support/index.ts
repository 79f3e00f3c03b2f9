// SPDX-License-Identifier: MIT
// What the tests of all rooms share: unique places, C programs, skips that can be forbidden, software driver and pool.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import { type ExecOptions, type ExecResult, exec } from '../../harness/adapters/exec.ts';
import { built, criuTree, inRoot } from '../../harness/paths.ts';

export { built, criuTree, inRoot, root } from '../../harness/paths.ts';

/** A name that no other test uses. */
export const unique = (what = 'test'): string => `cudapool-${what}-${process.pid}-${randomBytes(4).toString('hex')}`;

/** An empty folder that goes away with the test. Short enough to hold sockets. */
export function tempDir(t: Test, parent = '/tmp'): string {
  const dir = mkdtempSync(join(parent, 'cudapool-test-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/**
 * `if (!skipUnless(t, condition, reason)) return;` With CUDAPOOL_TEST_NO_SKIPS=1 (.ci/run) a
 * condition that does not hold fails the test instead.
 */
export function skipUnless(t: Test, condition: unknown, reason: string): boolean {
  if (condition) return true;
  if (process.env.CUDAPOOL_TEST_NO_SKIPS === '1') t.fail(`cannot run here: ${reason}`);
  else t.pass(reason, { skip: reason });
  return false;
}

/** For a comparison with NVIDIA's own toolkit, which nothing here needs: a skip that is always allowed. */
export function skipUnlessToolkit(t: Test, there: unknown, reason: string): boolean {
  if (!there) t.pass(reason, { skip: reason });
  return Boolean(there);
}

/** For what only a real GPU can show: a skip that is always allowed. */
export function skipUnlessGpu(t: Test): boolean {
  if (existsSync('/proc/driver/nvidia/gpus')) return true;
  t.pass('needs an NVIDIA GPU', { skip: true });
  return false;
}

export const isRoot = process.geteuid?.() === 0;

/**
 * Builds the C programs of test/ROOM (its Makefile includes wire/rules.mk) with warnings as
 * errors, and returns the folder that holds them. Safe to call from several tests at once.
 */
export async function buildSnippets(room: string, options: { sanitize?: string } = {}): Promise<string> {
  const out = inRoot('build', 'c', options.sanitize === undefined ? room : `${room}-${options.sanitize}`);
  mkdirSync(out, { recursive: true });
  const vars = [`OUT=${out}`, 'WERROR=1', ...(options.sanitize === undefined ? [] : [`SANITIZE=${options.sanitize}`])];
  await exec('flock', [join(out, '.lock'), 'make', '-s', '-C', inRoot('test', room), ...vars], { timeoutMs: 120_000 });
  return out;
}

/** The shim with sanitizers; give a program that has none of them the runtime as well (`cc -print-file-name=libasan.so`). */
export async function sanitizedShim(sanitize = 'address,undefined'): Promise<string> {
  const out = inRoot('build', 'c', `preload-${sanitize}`);
  mkdirSync(out, { recursive: true });
  const make = ['make', '-s', '-C', inRoot('preload'), `OUT=${out}`, 'WERROR=1', `SANITIZE=${sanitize}`];
  await exec('flock', [join(out, '.lock'), ...make], { timeoutMs: 120_000 });
  return join(out, 'libcudapool.so');
}

/** Runs a program that prints TAP as a part of this test. */
export async function runTap(
  t: Test,
  program: string,
  args: readonly string[] = [],
  env: Record<string, string> = {},
  name = [program.split('/').at(-1), ...args].join(' '),
): Promise<void> {
  await t.spawn(program, [...args], { env: { ...process.env, ...env }, timeout: 60_000 }, name);
}

/** bin/cudapool with these arguments; a failure is handed back, not thrown. */
export function cudapool(args: readonly string[], options: Partial<ExecOptions> = {}): Promise<ExecResult> {
  return exec(inRoot('bin', 'cudapool'), args, {
    timeoutMs: 60_000,
    reject: false,
    ...options,
    env: { NODE_OPTIONS: undefined, ...options.env }, // tap's own would make each start several times as long
  });
}

export interface SoftCuda {
  /** The device directory: what is host-wide on a machine with GPUs is per directory here. */
  dir: string;
  /** For applications, pool and tools: our libcuda.so.1 and cuda-checkpoint. */
  env: Record<string, string>;
}

/** A machine of its own with the software driver; `extra` sets SOFTCUDA_* options. */
export function softCuda(t: Test, extra: Record<string, string> = {}): SoftCuda {
  const dir = tempDir(t, '/dev/shm');
  // Devices of its own: the pools of tests that run beside this one see its processes, too.
  writeFileSync(join(dir, 'machine'), dir);
  return {
    dir,
    env: {
      SOFTCUDA_DIR: dir,
      LD_LIBRARY_PATH: built.softcudaLib,
      PATH: `${built.softcudaBin}:${process.env.PATH}`,
      ...extra,
    },
  };
}

/** Waits until `done` returns something true, and returns it; throws after the time limit. */
export async function until<T>(
  what: string,
  done: () => T | Promise<T>,
  limitMs = 10_000,
  stepMs = 10,
): Promise<NonNullable<T>> {
  const end = performance.now() + limitMs;
  for (;;) {
    const value = await done();
    if (value) return value as NonNullable<T>;
    if (performance.now() > end) throw new Error(`${what}: not within ${limitMs} ms`);
    await sleep(stepMs);
  }
}

export interface Pool {
  socket: string;
  child: ChildProcess;
  /** `cudapoold --status`, parsed. */
  status(): Promise<Record<string, unknown>>;
  /** What it logged so far. */
  log(): string;
  /** Ends it, by force if need be. Called by the test's teardown, too. */
  stop(): Promise<void>;
  /** The keeper dies, as of a lack of memory; its worker may live a little longer. */
  kill(): Promise<void>;
}

export interface PoolOptions {
  args?: readonly string[];
  env?: Record<string, string>;
  socket?: string;
  daemon?: string;
  /** false: return as soon as it answers, warm or not. */
  warm?: boolean;
}

/** Starts a pool of this test's own on the software driver. */
export async function startPool(t: Test, soft: SoftCuda, options: PoolOptions = {}): Promise<Pool> {
  const socket = options.socket ?? join(tempDir(t), 'pool.sock');
  const daemon = options.daemon ?? process.env.CUDAPOOL_TEST_DAEMON ?? built.cudapoold;
  const config = join(tempDir(t), 'cudapool.conf'); // not the machine's
  writeFileSync(config, '');
  const env = { ...process.env, CUDAPOOL_CONFIG: config, ...soft.env, ...options.env };
  const child = spawn(daemon, ['--foreground', '--socket', socket, ...(options.args ?? [])], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
  }
  const gone = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const stop = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGTERM');
      const force = setTimeout(() => child.kill('SIGKILL'), 5000);
      await gone;
      clearTimeout(force);
    }
  };
  t.teardown(stop);
  const kill = async (): Promise<void> => {
    child.kill('SIGKILL');
    await until('the keeper is dead', () => child.signalCode !== null);
  };
  const status = async (): Promise<Record<string, unknown>> => {
    const { stdout } = await exec(daemon, ['--status', '--socket', socket], { timeoutMs: 10_000, env });
    return JSON.parse(stdout) as Record<string, unknown>;
  };
  await until(
    'the pool starts',
    async () => {
      if (child.exitCode !== null) throw new Error(`cudapoold ended with ${child.exitCode}:\n${said}`);
      const { exitCode, stdout } = await exec(daemon, ['--status', '--socket', socket], {
        timeoutMs: 10_000,
        env,
        reject: false,
      });
      if (exitCode !== 0) return false;
      return options.warm === false || /"warm"/.test(stdout);
    },
    20_000,
    30,
  );
  return { socket, child, status, log: () => said, stop, kill };
}

/** CRIU as `cudapool build` leaves it: patched tree, its binary and plugin folder. */
export function builtCriu(version: string): { tree: string; criu: string; plugins: string; ready: boolean } {
  const tree = criuTree(version);
  const criu = join(tree, 'criu', 'criu');
  const plugins = join(tree, 'plugins', 'cuda');
  return { tree, criu, plugins, ready: existsSync(criu) && existsSync(join(plugins, 'cuda_plugin.so')) };
}
