// SPDX-License-Identifier: MIT
// What the end-to-end tests share: a lab that goes away with the test, and answers that must be right.
import { readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { inspectContainer } from '../../harness/adapters/podman.ts';
import type { ActionResult } from '../../harness/container/actions.ts';
import { type Answer, type Answers, expectedChecksum } from '../../harness/container/ask.ts';
import { checkpointDir } from '../../harness/container/images.ts';
import {
  type Lab,
  type LabOptions,
  makeLab,
  type Workload,
  type WorkloadOptions,
} from '../../harness/container/lab.ts';
import { poolReport } from '../../harness/container/pool-process.ts';
import { type Park, parksOf } from '../../harness/container/records.ts';
import type { CudapoolError } from '../../harness/errors.ts';
import { buildSnippets } from '../support/index.ts';

export const WORDS_PER_MIB = 1 << 18;

/** Always the software driver: these tests provoke failures. */
export async function labFor(t: Test, options: LabOptions = {}): Promise<Lab> {
  const lab = await makeLab({ driver: 'software', ...options });
  t.teardown(() => lab.dispose());
  return lab;
}

/** What a workload was started with; a bare number: its memoryMib. */
export type Shape = Pick<WorkloadOptions, 'memoryMib' | 'filledMib' | 'pieces' | 'seed'>;

/** Asks every process, and checks that each has kept the memory that it was started with. */
export async function verify(t: Test, workload: Workload, shape: Shape | number, message: string): Promise<Answers> {
  const {
    memoryMib = 0,
    filledMib = memoryMib,
    pieces = 1,
    seed = 1,
  } = typeof shape === 'number' ? { memoryMib: shape } : shape;
  const asked = await workload.ask({ timeoutMs: 30_000 });
  const words = memoryMib * WORDS_PER_MIB;
  const right = (answer: Answer, index: number): boolean =>
    answer.words === words && answer.checksum === expected(words, seed + index, pieces, filledMib * WORDS_PER_MIB);
  const wrong = asked.answers.filter((answer, index) => !right(answer, index));
  t.same(wrong, [], `${message}: every process holds what it held`);
  return asked;
}

const computed = new Map<string, string>();
function expected(words: number, seed: number, pieces: number, filled: number): string {
  const key = `${words}/${seed}/${pieces}/${filled}`;
  const sum = computed.get(key) ?? (words === 0 ? '0'.repeat(16) : expectedChecksum(words, seed, { pieces, filled }));
  computed.set(key, sum);
  return sum;
}

/** The ways that the processes' memory took, by the pool's records. */
export function expectPaths(
  t: Test,
  { memory, path, why }: ActionResult,
  paths: readonly string[],
  message: string,
): void {
  t.same(
    memory.map((record) => record.path),
    paths,
    `${message}: the way of each process's memory: ${memory.map((record) => record.why).join('; ')}`,
  );
  t.equal(path, 'pool', `${message}: ${why}`);
}

/** A checkpoint or restore that must fail, with words like these for people; `fix`: what the hint says of it. */
export async function refused(
  t: Test,
  action: Promise<unknown>,
  words: RegExp,
  message: string,
  fix?: RegExp,
): Promise<void> {
  const failed = await action.then(
    () => undefined,
    (error: CudapoolError) => error,
  );
  t.match(failed?.code, /^ERR_CUDAPOOL_(CHECKPOINT|RESTORE)$/, `${message}: it fails`);
  t.match([failed?.message, ...(failed?.lines ?? [])].join('\n'), words, `${message}: and says why`);
  if (fix !== undefined) t.match(failed?.hint, fix, `${message}: and names the fix`);
}

/** Where CRIU's images of a container are. */
export const imageDir = async (lab: Lab, { name }: Workload): Promise<string> =>
  checkpointDir(await inspectContainer(lab.podman, name));

/** What the lab's pool has parked. */
export async function parksIn(lab: Lab): Promise<Park[]> {
  return parksOf((await poolReport(lab.poolPlace()))?.parks);
}

/** Bytes free on each of the lab's devices, as a program without the shim sees them. */
export async function freeMemory(lab: Lab): Promise<number[]> {
  const program = join(await buildSnippets('park'), 'free_memory');
  const { stdout } = await exec(program, [], { timeoutMs: 10_000, env: lab.env });
  return JSON.parse(stdout) as number[];
}

/** The CRIU processes that work for this lab: they have a file of it open. (CRIU overwrites its own environment.) */
export function criuProcesses(lab: Lab): number[] {
  const link = (path: string): string => {
    try {
      return readlinkSync(path);
    } catch {
      return ''; // it has ended meanwhile
    }
  };
  const files = (pid: string): string[] => {
    try {
      return readdirSync(`/proc/${pid}/fd`).map((fd) => link(`/proc/${pid}/fd/${fd}`));
    } catch {
      return [];
    }
  };
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry) && link(`/proc/${entry}/exe`) === lab.criu.binary)
    .filter((entry) => files(entry).some((file) => file.startsWith(lab.dir)))
    .map(Number);
}
