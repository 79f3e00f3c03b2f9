// SPDX-License-Identifier: MIT
// Asks a workload what its GPU memory holds: the asker's side of workloads/protocol.h.
import { randomBytes } from 'node:crypto';
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as v from 'valibot';
import { cancelSignal, interrupted } from '../adapters/exec.ts';
import { CudapoolError } from '../errors.ts';

const Answer = v.object({
  nonce: v.string(),
  index: v.pipe(v.number(), v.integer()),
  pid: v.pipe(v.number(), v.integer()),
  counter: v.number(),
  words: v.optional(v.number()),
  seed: v.optional(v.number()),
  checksum: v.optional(v.pipe(v.string(), v.regex(/^[0-9a-f]{16}$/))),
  context: v.optional(v.string()),
  copies: v.optional(v.boolean()),
  first_call_us: v.optional(v.number()),
  steps: v.optional(v.number()),
  wrong: v.optional(v.number()),
  tokens: v.optional(v.pipe(v.string(), v.regex(/^[0-9a-f]{16}$/))),
  step_ms: v.optional(v.number()),
  gpu_bytes: v.optional(v.number()),
  answer_us: v.number(),
  error: v.optional(v.string()),
});
export type Answer = v.InferOutput<typeof Answer>;

export interface Answers {
  /** One for each process, by its number in the tree. */
  readonly answers: readonly Answer[];
  /** From the question to the last answer, seen from outside. */
  readonly wall_ms: number;
}

export interface AskOptions {
  /** How many processes the workload has; default 1. */
  processes?: number;
  /** Fill the memory anew with this before answering. */
  seed?: number;
  timeoutMs?: number;
  /** Ends the waiting. */
  signal?: AbortSignal;
}

const POLL_MS = 1;
const MAX_BYTES = 4096;

const answerFile = (dir: string, index: number): string => join(dir, index === 0 ? 'answer' : `answer.${index}`);

function readAnswer(dir: string, index: number, nonce: string): Answer | undefined {
  let text: string;
  try {
    text = readFileSync(answerFile(dir, index), 'utf8');
  } catch {
    return undefined; // not written yet
  }
  const bad = (why: string) =>
    new CudapoolError('ERR_CUDAPOOL_ANSWER', `${answerFile(dir, index)} ${why}`, { details: { text } });
  if (text.length > MAX_BYTES) throw bad('is too long to be an answer');
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw bad('is not JSON');
  }
  const checked = v.safeParse(Answer, parsed);
  if (!checked.success) throw bad(`is no answer: ${v.summarize(checked.issues)}`);
  if (checked.output.nonce !== nonce) return undefined; // of an earlier question
  if (checked.output.index !== index) throw bad(`is from process ${checked.output.index}`);
  return checked.output;
}

/**
 * Puts a question and waits for every process's answer. An answer that reports a CUDA error is an error. The
 * question is taken away in the end: a process that is restored later must not find it.
 */
export async function ask(dir: string, options: AskOptions = {}): Promise<Answers> {
  const { seed } = options;
  const nonce = randomBytes(16).toString('hex');
  const question = join(dir, 'ask');
  writeFileSync(`${question}.tmp`, seed === undefined ? `${nonce}\n` : `${nonce} ${seed}\n`);
  const started = performance.now();
  renameSync(`${question}.tmp`, question);
  try {
    const answers = await gather(dir, nonce, started, options);
    const wall_ms = performance.now() - started;
    for (const { index, error, wrong, steps } of answers) {
      const what =
        error ?? (wrong ? `${wrong} of ${steps} steps had a wrong result: its memory is corrupt` : undefined);
      if (what === undefined) continue;
      throw new CudapoolError('ERR_CUDAPOOL_ANSWER', `process ${index} of the workload: ${what}`, {
        details: { answers },
      });
    }
    return { answers, wall_ms };
  } finally {
    rmSync(question, { force: true });
  }
}

async function gather(dir: string, nonce: string, started: number, options: AskOptions): Promise<Answer[]> {
  const { processes = 1, timeoutMs = 10_000, signal } = options;
  const answers: Answer[] = [];
  for (;;) {
    while (answers.length < processes) {
      const answer = readAnswer(dir, answers.length, nonce);
      if (answer === undefined) break;
      answers.push(answer);
    }
    if (answers.length === processes) return answers;
    if (cancelSignal().aborted || signal?.aborted) throw interrupted();
    if (performance.now() - started > timeoutMs) {
      throw new CudapoolError(
        'ERR_CUDAPOOL_NO_ANSWER',
        `process ${answers.length} of the workload did not answer within ${timeoutMs / 1000} s`,
        { details: { dir } },
      );
    }
    await sleep(POLL_MS);
  }
}

/** Before a dump, so that no answer of an earlier life can be taken for a new one. */
export function forgetAnswers(dir: string, processes = 1): void {
  for (let i = 0; i < processes; i++) rmSync(answerFile(dir, i), { force: true });
}

const FILL_FACTOR = 2654435761;
const PIECE_FACTOR = 2654435769;

export interface Filling {
  /** Default 1. */
  readonly pieces?: number | undefined;
  /** Words that are not zero; default: all. */
  readonly filled?: number | undefined;
}

/** The checksum that gpu_app's memory filled with `seed` must have. Computed on the host: for some MiB, not for GiB. */
export function expectedChecksum(words: number, seed: number, { pieces = 1, filled = words }: Filling = {}): string {
  let sum = 0n;
  for (let p = 0; p < pieces; p++) {
    const pieceSeed = seed + Math.imul(p, PIECE_FACTOR);
    let ofPiece = 0n;
    for (let i = 0; i < words / pieces; i++) {
      const content = i < filled / pieces ? Math.imul(i, FILL_FACTOR) ^ pieceSeed : 0;
      const word = (content ^ i) >>> 0;
      // word * (2i + 1), in two parts that doubles hold exactly
      const weight = 2 * i + 1;
      ofPiece += (BigInt((word >>> 16) * weight) << 16n) + BigInt((word & 0xffff) * weight);
    }
    sum += ofPiece * BigInt(2 * p + 1);
  }
  return BigInt.asUintN(64, sum).toString(16).padStart(16, '0');
}
