// SPDX-License-Identifier: MIT
// One suite's runs: alternating, each recorded as soon as it has ended, within a time budget.
import { cancelSignal, interrupted } from '../adapters/exec.ts';
import { asCudapoolError, EXIT } from '../errors.ts';
import { roundOf } from './order.ts';
import {
  type BenchRecord,
  conclude,
  type Metric,
  type Observations,
  type Run,
  samples,
  summarized,
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
  /** The first is the baseline, unless each is a thing of its own. */
  readonly variants: readonly Variant[];
  readonly unlike?: true;
  readonly metrics: readonly Metric[];
  readonly targets?: readonly Target[];
  /** This many failures one after another end it; default 3. */
  readonly failuresInARow?: number;
  /** Rounds are added for so long, from the end of `begin` on, instead of to a number. */
  readonly seconds?: number;
  /** The order within a round; default: each second one backwards. */
  readonly roundOf?: (variants: readonly Variant[], round: number) => Variant[];
  /** Before the first run, and before its time begins. */
  readonly begin?: () => Promise<void>;
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
  /** Of some variants more or fewer. */
  readonly runsOf?: Readonly<Record<string, number>>;
  readonly warmup: number;
  /** performance.now() after which no further round is begun; whole rounds only, and at least one. */
  readonly deadline?: number;
}

/** How far it is. */
export interface Progress {
  /** Runs in all; undefined: as many as its time allows. */
  readonly total: number | undefined;
  /** About how long it will take yet, by what the runs so far have taken. */
  readonly leftMs: number;
}

/** Told of the record after each run, without verdicts until it is complete; what it returns is waited for. */
export type Watcher = (record: BenchRecord, last: Run | undefined, progress: Progress) => Promise<void> | void;

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

/** A target that names a variant which is not run says nothing. */
const isAbout = (target: Target, variants: readonly Variant[]): boolean =>
  ['variant', 'baseline', 'control'].every(
    (role) => !(role in target) || variants.some(({ name }) => name === target[role as keyof Target]),
  );

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
    ...(experiment.unlike && { unlike: true }),
    metrics: [...metrics],
    targets: (experiment.targets ?? []).filter((target) => isAbout(target, variants)),
    runs: [],
    facts: {},
    warnings: [],
  };
  const runsOf = ({ name }: Variant): number => limits.warmup + (limits.runsOf?.[name] ?? limits.runs);
  const orderIn = experiment.roundOf ?? roundOf;
  const rounds = Array.from({ length: Math.max(...variants.map(runsOf)) }, (_, round) =>
    orderIn(variants, round).filter((variant) => round < runsOf(variant)),
  );
  const order = rounds.flatMap((members, round) => members.map((variant, at) => ({ variant, round, first: at === 0 })));
  const timed = new Map<string, number[]>();
  const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / Math.max(1, values.length);
  /** What these runs will take: as those of the same variants have, or as all have. */
  const expected = (members: readonly Variant[]): number =>
    members.reduce((sum, { name }) => sum + mean(timed.get(name) ?? [...timed.values()].flat()), 0);

  await experiment.begin?.();
  const own = experiment.seconds === undefined ? undefined : performance.now() + experiment.seconds * 1000;
  const deadline = Math.min(own ?? Number.POSITIVE_INFINITY, limits.deadline ?? Number.POSITIVE_INFINITY);
  const total = own === undefined ? order.length : undefined;
  let failures = 0;

  for (const [index, { variant, round, first }] of order.entries()) {
    if (cancelSignal().aborted) throw interrupted();
    if (first && round > limits.warmup && performance.now() + expected(rounds[round] ?? []) > deadline) {
      if (own === undefined || deadline < own)
        seen.warnings.push(`the time budget ended after ${round - limits.warmup} of ${limits.runs} runs each`);
      break;
    }
    const run: Run = {
      order: index + 1,
      variant: variant.name,
      warmup: round < limits.warmup,
      values: {},
      verified: false,
    };
    const started = performance.now();
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
    const now = performance.now();
    timed.set(variant.name, [...(timed.get(variant.name) ?? []), now - started]);
    seen.runs.push(run);
    seen.ended = new Date().toISOString();
    const byRuns = own === undefined ? expected(order.slice(index + 1).map((each) => each.variant)) : deadline - now;
    await watch(summarized(seen), run, { total, leftMs: Math.max(0, Math.min(byRuns, deadline - now)) });
    if (failures === (experiment.failuresInARow ?? FAILURES_IN_A_ROW)) {
      seen.warnings.push(`ended after ${failures} failures in a row`);
      break;
    }
  }

  // Warned of is what the suite is about: its first metric, and those that a target looks at. Paired ones say themselves how sure they are.
  const judged = seen.targets.flatMap((target) => ('metric' in target ? [target] : []));
  for (const [index, metric] of metrics.entries()) {
    const about = judged.filter((target) => target.metric === metric.name);
    if (about.some(({ kind }) => kind === 'paired') || (index > 0 && about.length === 0)) continue;
    for (const variant of variants) {
      const values = samples(seen, metric.name, variant.name);
      seen.warnings.push(...noiseWarnings(`${variant.label}, ${metric.label}`, values));
    }
  }
  Object.assign(seen.facts, await experiment.facts?.(seen));
  seen.ended = new Date().toISOString();
  seen.complete = true;
  const record = conclude(seen);
  await watch(record, undefined, { total, leftMs: 0 });
  return record;
}
