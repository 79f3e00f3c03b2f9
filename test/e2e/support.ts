// SPDX-License-Identifier: MIT
// What the end-to-end tests share: a lab that goes away with the test, and answers that must be right.
import { readdirSync, readlinkSync } from 'node:fs';
import type { Test } from 'tap';
import { type Answer, type Answers, expectedChecksum } from '../../harness/container/ask.ts';
import { type Lab, type LabOptions, makeLab, type Workload } from '../../harness/container/lab.ts';

export const WORDS_PER_MIB = 1 << 18;

/** Always the software driver: these tests provoke failures. */
export async function labFor(t: Test, options: LabOptions = {}): Promise<Lab> {
  const lab = await makeLab({ driver: 'software', ...options });
  t.teardown(() => lab.dispose());
  return lab;
}

/** Asks every process, and checks that each has kept the memory that it was started with. */
export async function verify(t: Test, workload: Workload, memoryMib: number, message: string): Promise<Answers> {
  const asked = await workload.ask();
  const words = memoryMib * WORDS_PER_MIB;
  const right = (answer: Answer, index: number): boolean =>
    answer.words === words && answer.checksum === expected(words, 1 + index);
  const wrong = asked.answers.filter((answer, index) => !right(answer, index));
  t.same(wrong, [], `${message}: every process holds what it held`);
  return asked;
}

const computed = new Map<string, string>();
function expected(words: number, seed: number): string {
  const key = `${words}/${seed}`;
  const sum = computed.get(key) ?? (words === 0 ? '0'.repeat(16) : expectedChecksum(words, seed));
  computed.set(key, sum);
  return sum;
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
