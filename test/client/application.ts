// SPDX-License-Identifier: MIT
// A CUDA application without a container, for the tests of this room: started in a session of its own, so that CRIU can dump it.
import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { ask, expectedChecksum } from '../../harness/container/ask.ts';
import { built, type SoftCuda, tempDir } from '../support/index.ts';

const WORDS = (1 << 20) / 4;

export interface Application {
  readonly pid: number;
  readonly dir: string;
  /** Fills the GPU's memory with this seed. */
  fill(seed: number): Promise<void>;
  /** Fails the test unless the memory holds what `seed` gives. */
  holds(seed: number, what: string): Promise<void>;
  /** True as soon as its number is free: it is no zombie any more either. */
  gone(): boolean;
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

export async function startApplication(
  t: Test,
  soft: SoftCuda,
  extra: Record<string, string> = {},
): Promise<Application> {
  const dir = join(tempDir(t), 'app');
  mkdirSync(dir);
  const child = spawn(join(built.workloads, 'gpu_app'), ['--dir', dir, '--memory', '1', '--seed', '1'], {
    env: { ...process.env, ...soft.env, ...extra },
    stdio: 'ignore',
    detached: true,
  });
  const pid = child.pid as number;
  // A restored one is no child of ours any more, but has the same number.
  t.teardown(() => {
    if (alive(pid)) process.kill(pid, 'SIGKILL');
  });
  const application: Application = {
    pid,
    dir,
    fill: async (seed) => {
      await ask(dir, { seed });
    },
    holds: async (seed, what) => {
      const { answers } = await ask(dir);
      t.match(answers[0], { pid, words: WORDS, seed, checksum: expectedChecksum(WORDS, seed) }, what);
    },
    gone: () => !alive(pid),
  };
  await application.holds(1, 'the application answers');
  return application;
}
