// SPDX-License-Identifier: MIT
// A whole bench: suite after suite within a time budget, every run on disk as soon as it has ended.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { exec } from '../adapters/exec.ts';
import { asCudapoolError, CudapoolError, EXIT, unfitError } from '../errors.ts';
import { say } from '../output.ts';
import { type Bed, type BedOptions, openBed } from './bed.ts';
import { type Experiment, type Progress, runExperiment } from './experiment.ts';
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
import { type Asked, type Suite, secondsOf } from './suite.ts';
import { formatNumber } from './table.ts';

export interface SessionOptions extends BedOptions, Asked {
  readonly suites: readonly Suite[];
  /** Of each variant; default: each suite's own choice. */
  readonly runs?: number | undefined;
  /** Of each variant, before those that count; default: each suite's own choice. */
  readonly warmup?: number | undefined;
  /** A shell command before each run, outside of what is timed. */
  readonly prepare?: string | undefined;
  /** Seconds for all of it: suites that do not fit are left out, and runs of one that takes longer than it should. */
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

function progressLine(record: BenchRecord, run: Run, { total, leftMs }: Progress): string {
  const metric = record.metrics[0];
  const value = metric === undefined ? undefined : run.values[metric.name];
  const label = record.variants.find(({ name }) => name === run.variant)?.label ?? run.variant;
  const what = run.error ?? (value === undefined ? 'done' : `${formatNumber(value)} ${metric?.unit ?? ''}`.trim());
  const doubt = run.error === undefined && !run.verified ? ' (wrong answer)' : '';
  const at = total === undefined ? `run ${run.order}` : `${run.order}/${total}`;
  const left = leftMs < 1000 ? '' : `; about ${Math.ceil(leftMs / 1000)} s left`;
  return `${recordTitle(record)} ${at} ${label}${run.warmup ? ' (warm-up)' : ''}: ${what}${doubt}${left}`;
}

/** Of runs that take less, not every one is told and written at once: that would take longer than they do. */
const SAVE_MS = 1000;

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

/** Of which variants how many runs are made, where it is not the number of all. */
function runsOf(suite: Suite, { ways, runs }: SessionOptions): Record<string, number> {
  const own = runs === undefined ? suite.runsOf : {};
  const asked = Object.entries(ways ?? {}).filter((entry): entry is [string, number] => entry[1] !== undefined);
  return { ...own, ...Object.fromEntries(asked) };
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
  const left: string[] = [];
  const save = async (record: BenchRecord): Promise<void> => {
    const name = `${record.suite}${record.case === undefined ? '' : `-${record.case}`}.json`;
    if (out !== undefined) await writeWhole(join(out, name), formatDocument(host, [record]));
    const before = records.filter((each) => each !== record);
    if (file !== undefined) await writeWhole(file, formatDocument(host, [...before, record]));
  };
  const end = options.budgetS === undefined ? undefined : performance.now() + options.budgetS * 1000;
  const seconds = (suite: Suite): number => secondsOf(suite, options);
  for (const [index, suite] of able.entries()) {
    // What the ones before did not use is there for the next.
    if (end !== undefined && index > 0 && performance.now() + seconds(suite) * 1000 > end) {
      left.push(`${suite.name} (about ${seconds(suite)} s)`);
      continue;
    }
    say(`suite ${suite.name}${host.simulated ? '' : `: about ${seconds(suite)} s`}`);
    for (const plain of suite.experiments({ ...options, bed })) {
      const without = await suite.leaveOut?.({ bed }, plain.case);
      if (without !== undefined) {
        say(`${plain.suite} (${plain.case}) is left out: ${without}`);
        continue;
      }
      const limits = {
        runs: options.runs ?? suite.runs,
        runsOf: runsOf(suite, options),
        warmup: options.warmup ?? suite.warmup ?? 1,
        ...(end !== undefined && { deadline: end }),
      };
      let last: BenchRecord | undefined;
      let saved = 0;
      try {
        await runExperiment(withPrepare(plain, options.prepare), limits, async (seen, run, progress) => {
          last = seen;
          if (seen.complete) records.push(seen);
          const bad = run !== undefined && (run.error !== undefined || !run.verified);
          if (!seen.complete && !bad && performance.now() - saved < SAVE_MS) return;
          if (run !== undefined) say(progressLine(seen, run, progress));
          await save(seen);
          saved = performance.now();
        });
      } catch (thrown) {
        const error = asCudapoolError(thrown);
        if (last !== undefined && !last.complete) {
          await save(last);
          records.push(last);
        }
        if (error.exit === EXIT.INTERRUPTED || able.length === 1) throw error;
        failed.push(suite.name);
        say(`suite ${suite.name} failed: ${error.message}`); // the others are worth their time all the same
      }
    }
  }
  if (left.length > 0) say(`left out, as the time budget of ${options.budgetS} s would not do: ${left.join(', ')}`);
  for (const record of records)
    for (const warning of record.warnings) say(`warning: ${recordTitle(record)}: ${warning}`);
  if (records.length === 0)
    throw new CudapoolError('ERR_CUDAPOOL_BENCH', 'no suite could be run', { hint: 'what each said is above' });
  return { document: { schema: SCHEMA, version: VERSION, host, records }, failed };
}
