// SPDX-License-Identifier: MIT
// A whole bench: suite after suite within a time budget, every run on disk as soon as it has ended.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { exec } from '../adapters/exec.ts';
import { asCudapoolError, CudapoolError, EXIT, unfitError } from '../errors.ts';
import { say } from '../output.ts';
import { type Bed, type BedOptions, openBed } from './bed.ts';
import { type Experiment, runExperiment } from './experiment.ts';
import { recordTitle } from './export.ts';
import { fingerprint } from './fingerprint.ts';
import {
  type BenchDocument,
  type BenchRecord,
  formatDocument,
  type Run,
  SCHEMA,
  VERSION,
  writeWhole,
} from './record.ts';
import type { Suite } from './suite.ts';
import { formatNumber } from './table.ts';

export interface SessionOptions extends BedOptions {
  readonly suites: readonly Suite[];
  /** Of each variant; default: each suite's own choice. */
  readonly runs?: number | undefined;
  /** Of each variant, before those that count; default: each suite's own choice. */
  readonly warmup?: number | undefined;
  readonly memoryMib?: number | undefined;
  readonly gib?: readonly number[] | undefined;
  readonly only?: readonly string[] | undefined;
  /** A shell command before each run, outside of what is timed. */
  readonly prepare?: string | undefined;
  /** Seconds for all of it; suites that take longer get fewer runs. */
  readonly budgetS?: number | undefined;
  /** A folder that gets one file for each record. */
  readonly out?: string | undefined;
  /** A file that gets all of them. */
  readonly file?: string | undefined;
}

export interface SessionResult {
  readonly document: BenchDocument;
  /** Suites that could not be ended as they should; their records may be there all the same. */
  readonly failed: readonly string[];
}

const PREPARE_MS = 600_000;

function progressLine(record: BenchRecord, run: Run, total: number): string {
  const metric = record.metrics[0];
  const value = metric === undefined ? undefined : run.values[metric.name];
  const label = record.variants.find(({ name }) => name === run.variant)?.label ?? run.variant;
  const what = run.error ?? (value === undefined ? 'done' : `${formatNumber(value)} ${metric?.unit ?? ''}`.trim());
  const doubt = run.error === undefined && !run.verified ? ' (wrong answer)' : '';
  return `${recordTitle(record)} ${run.order}/${total} ${label}${run.warmup ? ' (warm-up)' : ''}: ${what}${doubt}`;
}

function withPrepare(experiment: Experiment, command: string | undefined): Experiment {
  if (command === undefined) return experiment;
  return {
    ...experiment,
    setup: { ...experiment.setup, prepare: command },
    prepare: async (variant) => {
      await experiment.prepare?.(variant);
      await exec('sh', ['-c', command], { timeoutMs: PREPARE_MS, env: { CUDAPOOL_BENCH_VARIANT: variant } });
    },
  };
}

/** Runs them all. What was measured until an interruption is on disk, where --out or --json named a place. */
export async function runSession(options: SessionOptions): Promise<SessionResult> {
  const bed = await openBed(options);
  try {
    return await runSuites(bed, options);
  } finally {
    await bed.close();
  }
}

async function runSuites(bed: Bed, options: SessionOptions): Promise<SessionResult> {
  const host = await fingerprint(bed);
  say(host.simulated ? 'software driver: whatever is measured is simulated' : `GPU: ${host.gpus.join(', ')}`);
  const { out, file } = options;
  if (out !== undefined) mkdirSync(out, { recursive: true });

  const able: Suite[] = [];
  for (const suite of options.suites) {
    const why = await suite.unfit?.(bed);
    if (why === undefined) able.push(suite);
    else say(`suite ${suite.name} is left out: ${why}`);
  }
  if (able.length === 0) {
    throw unfitError(
      'ERR_CUDAPOOL_NO_SUITE',
      'none of these suites can run here',
      '`cudapool check` says what is missing',
    );
  }

  const records: BenchRecord[] = [];
  const failed: string[] = [];
  const end = options.budgetS === undefined ? undefined : performance.now() + options.budgetS * 1000;
  for (const [index, suite] of able.entries()) {
    // What is left is shared out by how long each suite takes; what one does not use is the next ones'.
    const weights = able.slice(index).map(({ seconds }) => seconds);
    const share = suite.seconds / weights.reduce((a, b) => a + b, 0);
    const now = performance.now();
    const deadline = end === undefined ? undefined : now + (end - now) * share;
    for (const plain of suite.experiments({
      bed,
      memoryMib: options.memoryMib,
      gib: options.gib,
      only: options.only,
    })) {
      const without = await suite.leaveOut?.({ bed }, plain.case);
      if (without !== undefined) {
        say(`${plain.suite} (${plain.case}) is left out: ${without}`);
        continue;
      }
      const experiment = withPrepare(plain, options.prepare);
      const limits = {
        runs: options.runs ?? suite.runs,
        warmup: options.warmup ?? suite.warmup ?? 1,
        ...(deadline !== undefined && { deadline }),
      };
      const total = (limits.runs + limits.warmup) * experiment.variants.length;
      const save = async (record: BenchRecord): Promise<void> => {
        const name = `${record.suite}${record.case === undefined ? '' : `-${record.case}`}.json`;
        if (out !== undefined) await writeWhole(join(out, name), formatDocument(host, [record]));
        if (file !== undefined) await writeWhole(file, formatDocument(host, [...records, record]));
      };
      try {
        await runExperiment(experiment, limits, async (seen, last) => {
          if (last !== undefined) say(progressLine(seen, last, total));
          await save(seen);
          if (seen.complete) records.push(seen);
        });
      } catch (thrown) {
        const error = asCudapoolError(thrown);
        if (error.exit === EXIT.INTERRUPTED || able.length === 1) throw error;
        failed.push(suite.name);
        say(`suite ${suite.name} failed: ${error.message}`); // the others are worth their time all the same
      }
    }
  }
  for (const record of records)
    for (const warning of record.warnings) say(`warning: ${recordTitle(record)}: ${warning}`);
  if (records.length === 0)
    throw new CudapoolError('ERR_CUDAPOOL_BENCH', 'no suite could be run', { hint: 'what each said is above' });
  return { document: { schema: SCHEMA, version: VERSION, host, records }, failed };
}
