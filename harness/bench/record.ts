// SPDX-License-Identifier: MIT
// What a benchmark leaves behind: raw runs in the order they ran, what follows from them, and on which host.
import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import * as v from 'valibot';
import { CudapoolError, EXIT } from '../errors.ts';
import { medianRatio, pairedEffect, summarize } from './stats.ts';

export const SCHEMA = 'cudapool.bench';
export const VERSION = 1;

const name = v.pipe(v.string(), v.regex(/^[a-z0-9][a-z0-9_.-]{0,63}$/, 'a short lower-case name'));
const line = v.pipe(v.string(), v.maxLength(4000));
const finite = v.pipe(v.number(), v.finite());
const scalar = v.union([finite, line, v.boolean()]);
const time = v.pipe(v.string(), v.isoTimestamp());

const Host = v.strictObject({
  kernel: line,
  cpu: line,
  cores: v.pipe(v.number(), v.integer(), v.minValue(1)),
  memory_mib: v.pipe(v.number(), v.integer(), v.minValue(1)),
  gpus: v.pipe(v.array(line), v.maxLength(64)),
  driver: v.nullable(line),
  criu: v.nullable(line),
  podman: v.nullable(line),
  runtime: v.nullable(line),
  node: line,
  project: line,
  commit: v.nullable(line),
  /** Times come from the software driver, not from a GPU. */
  simulated: v.boolean(),
  /** SHA-256 of the file of measured costs that the software driver spent; null: it spent none, or there was a GPU. */
  softcuda_costs: v.nullable(v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/))),
});

const Variant = v.strictObject({ name, label: line });

const Metric = v.strictObject({ name, unit: line, label: line });

const Target = v.variant('kind', [
  /** median(variant) / median(baseline) of a metric is at most `max`. */
  v.strictObject({ kind: v.literal('ratio'), what: line, metric: name, variant: name, baseline: name, max: finite }),
  /** The median of a metric is at most `max`, in the metric's unit. */
  v.strictObject({ kind: v.literal('at_most'), what: line, metric: name, variant: name, max: finite }),
  /** The median of a metric is at least `min`, in the metric's unit. */
  v.strictObject({ kind: v.literal('at_least'), what: line, metric: name, variant: name, min: finite }),
  /**
   * A fact of the record is at most `max`, and at least `min`; judged from so many right `runs` of each variant on. Its interval,
   * where it has one, is in the facts `…_low` and `…_high`.
   */
  v.strictObject({
    kind: v.literal('fact'),
    what: line,
    fact: name,
    min: v.optional(finite),
    max: finite,
    runs: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  }),
  /**
   * Of programs that live side by side and take turns: how much more the variant takes than its baseline in the same round, as a
   * ratio or as a difference in the metric's unit, is at most `max`. `control` is the baseline once more: the baseline of a round
   * is the mean of both, and what differs between them is what this measurement cannot tell from nothing.
   */
  v.strictObject({
    kind: v.literal('paired'),
    what: line,
    metric: name,
    variant: name,
    baseline: name,
    control: name,
    by: v.picklist(['ratio', 'difference']),
    max: finite,
  }),
]);

const Interval = v.strictObject({ value: finite, low: finite, high: finite });
/** The whole interval is below the limit, or above it; or neither, or the control differs by as much as the limit allows. */
const Answer = v.picklist(['holds', 'does not hold', 'cannot tell']);

const Run = v.strictObject({
  /** Counts from 1, warm-up runs included. */
  order: v.pipe(v.number(), v.integer(), v.minValue(1)),
  variant: name,
  warmup: v.boolean(),
  values: v.record(name, finite),
  /** The application was asked after the run, and its answer was right. */
  verified: v.boolean(),
  notes: v.optional(v.record(name, scalar)),
  error: v.optional(line),
});

const Summary = v.strictObject({
  count: v.pipe(v.number(), v.integer(), v.minValue(1)),
  median: finite,
  interval: v.strictObject({ low: finite, high: finite, confidence: finite }),
  mean: finite,
  min: finite,
  max: finite,
  stddev: finite,
});

const Result = v.strictObject({ metric: name, variant: name, summary: Summary });

const Verdict = v.strictObject({
  what: line,
  min: v.optional(finite),
  max: v.optional(finite),
  /** null: no run gave the figure. */
  value: v.nullable(finite),
  low: v.optional(finite),
  high: v.optional(finite),
  met: v.boolean(),
  /** Of paired targets; `met` is that it holds. */
  answer: v.optional(Answer),
  control: v.optional(Interval),
});

const Record_ = v.strictObject({
  suite: name,
  case: v.optional(name),
  title: line,
  started: time,
  ended: time,
  /** false while runs are still being added, and for good if the bench was ended from outside. */
  complete: v.boolean(),
  setup: v.record(name, scalar),
  variants: v.pipe(v.array(Variant), v.minLength(1), v.maxLength(16)),
  /** Each variant is a thing of its own: none is the baseline. */
  unlike: v.optional(v.literal(true)),
  metrics: v.pipe(v.array(Metric), v.minLength(1), v.maxLength(32)),
  targets: v.pipe(v.array(Target), v.maxLength(32)),
  runs: v.pipe(v.array(Run), v.maxLength(100_000)),
  facts: v.record(name, scalar),
  warnings: v.pipe(v.array(line), v.maxLength(1000)),
  /** What follows from the runs; recomputed when the record is read. */
  results: v.array(Result),
  verdicts: v.array(Verdict),
});

const Document = v.strictObject({
  schema: v.literal(SCHEMA),
  version: v.literal(VERSION),
  host: Host,
  records: v.array(Record_),
});

export type Host = v.InferOutput<typeof Host>;
export type Variant = v.InferOutput<typeof Variant>;
export type Metric = v.InferOutput<typeof Metric>;
export type Target = v.InferOutput<typeof Target>;
export type Run = v.InferOutput<typeof Run>;
export type Result = v.InferOutput<typeof Result>;
export type Verdict = v.InferOutput<typeof Verdict>;
export type BenchRecord = v.InferOutput<typeof Record_>;
export type BenchDocument = v.InferOutput<typeof Document>;

/** A record before what follows from its runs is worked out. */
export type Observations = Omit<BenchRecord, 'results' | 'verdicts'>;

/** The samples that count: of this variant, not a warm-up, right, in the order they ran. */
export function samples(record: Pick<Observations, 'runs'>, metric: string, variant: string): number[] {
  return record.runs.flatMap((run) => {
    const value = run.values[metric];
    return run.variant === variant && !run.warmup && run.error === undefined && value !== undefined ? [value] : [];
  });
}

/** Of fewer rounds a median has no interval to speak of. */
const FEWEST_ROUNDS = 6;

interface Round {
  readonly group: number;
  readonly values: Readonly<Record<string, number>>;
}

/** The rounds in which all of these variants have this metric. A group's runs are of the same processes. */
function roundsOf(seen: Observations, metric: string, variants: readonly string[]): Round[] {
  const rounds = new Map<number, { group: number; values: Record<string, number> }>();
  for (const { order, variant, warmup, error, values, notes } of seen.runs) {
    const value = values[metric];
    if (warmup || error !== undefined || value === undefined) continue;
    const number = Math.floor((order - 1) / seen.variants.length);
    const round = rounds.get(number) ?? { group: 0, values: {} };
    round.values[variant] = value;
    if (typeof notes?.group === 'number') round.group = notes.group;
    rounds.set(number, round);
  }
  return [...rounds.values()].filter(({ values }) => variants.every((variant) => values[variant] !== undefined));
}

function judgePaired(seen: Observations, target: Extract<Target, { kind: 'paired' }>): Verdict {
  const { what, max, by, metric, variant, baseline, control } = target;
  const rounds = roundsOf(seen, metric, [variant, baseline, control]).map(({ group, values }) => {
    const [ours = 0, base = 0, again = 0] = [variant, baseline, control].map((each) => values[each]);
    return { group, ours, base, again };
  });
  if (rounds.length < FEWEST_ROUNDS) return { what, max, value: null, met: false, answer: 'cannot tell' };
  const effect = pairedEffect(
    rounds.map(({ group, ours, base, again }) => ({ group, ours, base: (base + again) / 2 })),
    by,
  );
  const noise = pairedEffect(
    rounds.map(({ group, base, again }) => ({ group, ours: again, base })),
    by,
  );
  const nothing = by === 'ratio' ? 1 : 0;
  const fine = noise.low >= 2 * nothing - max && noise.high <= max;
  const answer = fine && effect.high <= max ? 'holds' : fine && effect.low > max ? 'does not hold' : 'cannot tell';
  return { what, max, ...effect, met: answer === 'holds', answer, control: noise };
}

function judge(seen: Observations, target: Target): Verdict {
  const { what } = target;
  if (target.kind === 'paired') return judgePaired(seen, target);
  if (target.kind === 'at_least') {
    const { min } = target;
    const ours = samples(seen, target.metric, target.variant);
    if (ours.length === 0) return { what, min, value: null, met: false };
    const { median, interval } = summarize(ours);
    return { what, min, value: median, low: interval.low, high: interval.high, met: median >= min };
  }
  const { max } = target;
  if (target.kind === 'fact') {
    const { min } = target;
    const value = seen.facts[target.fact];
    const number = typeof value === 'number' ? value : null;
    const met = number !== null && number <= max && (min === undefined || number >= min);
    const [low, high] = [seen.facts[`${target.fact}_low`], seen.facts[`${target.fact}_high`]];
    const bounds = typeof low === 'number' && typeof high === 'number' ? { low, high } : {};
    return { what, ...(min !== undefined && { min }), max, value: number, ...bounds, met };
  }
  const ours = samples(seen, target.metric, target.variant);
  if (target.kind === 'at_most') {
    if (ours.length === 0) return { what, max, value: null, met: false };
    const { median, interval } = summarize(ours);
    return { what, max, value: median, low: interval.low, high: interval.high, met: median <= max };
  }
  const baseline = samples(seen, target.metric, target.baseline);
  if (ours.length === 0 || baseline.length === 0) return { what, max, value: null, met: false };
  const { value, low, high } = medianRatio(ours, baseline);
  return { what, max, value, low, high, met: value <= max };
}

/** Some targets say nothing of a few runs. */
function isJudged(seen: Observations, target: Target): boolean {
  const due = target.kind === 'fact' ? (target.runs ?? 0) : 0;
  const right = (variant: string): number =>
    seen.runs.filter((run) => run.variant === variant && !run.warmup && run.error === undefined).length;
  return seen.variants.every(({ name }) => right(name) >= due);
}

/** Adds what each metric came to. */
export function summarized(seen: Observations): BenchRecord {
  const results = seen.metrics.flatMap((metric) =>
    seen.variants.flatMap((variant) => {
      const values = samples(seen, metric.name, variant.name);
      return values.length === 0 ? [] : [{ metric: metric.name, variant: variant.name, summary: summarize(values) }];
    }),
  );
  return { ...seen, results, verdicts: [] };
}

/** Adds all that follows from the runs. */
export function conclude(seen: Observations): BenchRecord {
  const judged = seen.targets.filter((target) => isJudged(seen, target));
  return { ...summarized(seen), verdicts: judged.map((target) => judge(seen, target)) };
}

export function failedRuns(record: Pick<Observations, 'runs'>): Run[] {
  return record.runs.filter((run) => run.error !== undefined);
}

function issueText(issues: readonly v.BaseIssue<unknown>[]): string {
  return issues
    .slice(0, 3)
    .map((issue) => `${v.getDotPath(issue) ?? 'document'}: ${issue.message}`)
    .join('; ');
}

const messageOf = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown));

/** Checks a document of ours before it is written: a mistake of this program's, not of its user's. */
function checked(document: BenchDocument): BenchDocument {
  const outcome = v.safeParse(Document, document);
  if (outcome.success) return outcome.output;
  throw new CudapoolError(
    'ERR_CUDAPOOL_RECORD',
    `a benchmark record of our own is malformed: ${issueText(outcome.issues)}`,
    {
      hint: 'this is a defect of cudapool',
    },
  );
}

export function formatDocument(host: Host, records: readonly BenchRecord[]): string {
  return `${JSON.stringify(checked({ schema: SCHEMA, version: VERSION, host, records: [...records] }), null, 1)}\n`;
}

/** Writes under another name first: whoever is killed in between leaves the last whole document. */
export async function writeWhole(file: string, text: string): Promise<void> {
  const draft = `${file}.${process.pid}.tmp`;
  try {
    await writeFile(draft, text);
    await rename(draft, file);
  } catch (cause) {
    await rm(draft, { force: true });
    throw new CudapoolError('ERR_CUDAPOOL_WRITE', `cannot write ${file}: ${messageOf(cause)}`, {
      hint: 'give a file in a directory that exists and can be written to',
      cause,
    });
  }
}

function sameSummaries(stored: BenchRecord, computed: BenchRecord): boolean {
  const close = (a: number, b: number): boolean => Math.abs(a - b) <= 1e-6 * Math.max(1, Math.abs(a), Math.abs(b));
  return (
    stored.results.length === computed.results.length &&
    stored.results.every((result, i) => {
      const other = computed.results[i] as Result;
      return (
        result.metric === other.metric &&
        result.variant === other.variant &&
        close(result.summary.median, other.summary.median)
      );
    })
  );
}

const WRITTEN_BY = 'give a file that `cudapool bench --json FILE` wrote';
const MAX_RECORD_BYTES = 64 * 2 ** 20;

/** Parses and checks a document; `from` names it in errors. */
export function parseDocument(text: string, from: string): BenchDocument {
  const fail = (why: string, hint: string, cause?: unknown): never => {
    throw new CudapoolError('ERR_CUDAPOOL_RECORD', `${from}: ${why}`, { hint, cause, exit: EXIT.USAGE });
  };
  if (text.length > MAX_RECORD_BYTES) fail('too large for a benchmark record', WRITTEN_BY);
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch (cause) {
    fail('not JSON', WRITTEN_BY, cause);
  }
  const { schema, version } = (raw ?? {}) as { schema?: unknown; version?: unknown };
  if (schema !== SCHEMA) fail(`not a benchmark record (schema ${JSON.stringify(schema)})`, WRITTEN_BY);
  if (version !== VERSION)
    fail(
      `a record of version ${JSON.stringify(version)}; this cudapool reads version ${VERSION}`,
      'use the cudapool that wrote it, or run the benchmark again.',
    );
  const outcome = v.safeParse(Document, raw);
  if (!outcome.success)
    return fail(issueText(outcome.issues), 'the file was changed or cut off; run the benchmark again.');
  const records = outcome.output.records.map(conclude);
  for (const [i, stored] of outcome.output.records.entries()) {
    if (!sameSummaries(stored, records[i] as BenchRecord)) {
      fail(
        `the results of suite ${stored.suite} do not follow from its runs`,
        'the file was changed by hand; run the benchmark again.',
      );
    }
  }
  return { ...outcome.output, records };
}

export async function readDocument(file: string): Promise<BenchDocument> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    throw new CudapoolError('ERR_CUDAPOOL_RECORD', `cannot read ${file}: ${messageOf(cause)}`, {
      hint: WRITTEN_BY,
      cause,
      exit: EXIT.USAGE,
    });
  }
  return parseDocument(text, file);
}
