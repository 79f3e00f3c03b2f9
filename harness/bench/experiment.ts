// SPDX-License-Identifier: MIT
// One suite's runs: alternating, each recorded as soon as it has ended, within a time budget.
import { cancelSignal, interrupted } from '../adapters/exec.ts';
import { asCudapoolError, EXIT } from '../errors.ts';
import { alternate } from './order.ts';
import {
  type BenchRecord,
  conclude,
  type Metric,
  type Observations,
  type Run,
  samples,
  type Target,
  type Variant,
} from './record.ts';
import { noiseWarnings } from './stats.ts';

export type Scalar = string | number | boolean;

export interface Outcome {
  readonly values: Readonly<Record<string, number>>;
  /** The application was asked, and its answer was right. */
  readonly verified: boolean;
  readonly notes?: Readonly<Record<string, Scalar>>;
}

export interface Experiment {
  readonly suite: string;
  readonly case?: string;
  readonly title: string;
  readonly setup: Readonly<Record<string, Scalar>>;
  /** The first is the baseline. */
  readonly variants: readonly Variant[];
  readonly metrics: readonly Metric[];
  readonly targets?: readonly Target[];
  /** This many failures one after another end it; default 3. */
  readonly failuresInARow?: number;
  /** Before each run, outside of what is timed. */
  readonly prepare?: (variant: string) => Promise<void>;
  readonly run: (variant: string, order: number) => Promise<Outcome>;
  /** After the last run: what else is known. */
  readonly facts?: (seen: Observations) => Promise<Record<string, Scalar>> | Record<string, Scalar>;
  /** At the end, however it comes about. */
  readonly finish?: () => Promise<void>;
}

export interface Limits {
  /** Of each variant, warm-ups not counted. */
  readonly runs: number;
  readonly warmup: number;
  /** performance.now() after which no further round is begun; whole rounds only, and at least one. */
  readonly deadline?: number;
}

/** Told of the record after each run, and of the finished one; what it returns is waited for. */
export type Watcher = (record: BenchRecord, last: Run | undefined) => Promise<void> | void;

/** Fewer than this many right runs of a variant, and its median has no interval of 95 %. */
export const RUNS_FOR_AN_INTERVAL = 6;
/** This many failures one after another, and the suite ends: more would only take time. */
const FAILURES_IN_A_ROW = 3;

export async function runExperiment(experiment: Experiment, limits: Limits, watch: Watcher): Promise<BenchRecord> {
  let record: BenchRecord;
  try {
    record = await runAll(experiment, limits, watch);
  } catch (thrown) {
    await experiment.finish?.().catch(() => {}); // what went wrong first is what is told
    throw thrown;
  }
  await experiment.finish?.();
  return record;
}

async function runAll(experiment: Experiment, limits: Limits, watch: Watcher): Promise<BenchRecord> {
  const { variants, metrics } = experiment;
  const seen: Observations = {
    suite: experiment.suite,
    ...(experiment.case !== undefined && { case: experiment.case }),
    title: experiment.title,
    started: new Date().toISOString(),
    ended: new Date().toISOString(),
    complete: false,
    setup: { ...experiment.setup, runs: limits.runs, warmup: limits.warmup },
    variants: [...variants],
    metrics: [...metrics],
    targets: [...(experiment.targets ?? [])],
    runs: [],
    facts: {},
    warnings: [],
  };
  const rounds = limits.warmup + limits.runs;
  const perRound = variants.length;
  const order = alternate(variants, rounds);
  const began = performance.now();
  let failures = 0;

  for (const [index, variant] of order.entries()) {
    if (cancelSignal().aborted) throw interrupted();
    const done = Math.floor(index / perRound);
    if (index % perRound === 0 && done > limits.warmup && limits.deadline !== undefined) {
      const expected = (performance.now() - began) / done;
      if (performance.now() + expected > limits.deadline) {
        seen.warnings.push(`the time budget ended after ${done - limits.warmup} of ${limits.runs} runs each`);
        break;
      }
    }
    const run: Run = {
      order: index + 1,
      variant: variant.name,
      warmup: done < limits.warmup,
      values: {},
      verified: false,
    };
    try {
      await experiment.prepare?.(variant.name);
      const outcome = await experiment.run(variant.name, run.order);
      Object.assign(run, outcome);
      failures = 0;
    } catch (thrown) {
      const error = asCudapoolError(thrown);
      if (error.exit === EXIT.INTERRUPTED) throw error;
      run.error = [error.message, ...error.lines].join('\n').slice(0, 4000);
      failures += 1;
    }
    seen.runs.push(run);
    seen.ended = new Date().toISOString();
    await watch(conclude(seen), run);
    if (failures === (experiment.failuresInARow ?? FAILURES_IN_A_ROW)) {
      seen.warnings.push(`ended after ${failures} failures in a row`);
      break;
    }
  }

  // Warned of is what the suite is about: its first metric, and those that a target looks at.
  const judged = new Set(seen.targets.flatMap((target) => ('metric' in target ? [target.metric] : [])));
  for (const [index, metric] of metrics.entries()) {
    if (index > 0 && !judged.has(metric.name)) continue;
    for (const variant of variants) {
      const values = samples(seen, metric.name, variant.name);
      seen.warnings.push(...noiseWarnings(`${variant.label}, ${metric.label}`, values));
    }
  }
  Object.assign(seen.facts, await experiment.facts?.(seen));
  seen.ended = new Date().toISOString();
  seen.complete = true;
  const record = conclude(seen);
  await watch(record, undefined);
  return record;
}
