// SPDX-License-Identifier: MIT
// Medians with intervals, ratios with intervals, and warnings about noise, from samples in the order they ran.
import {
  linearRegression,
  max,
  mean,
  median,
  medianAbsoluteDeviation,
  min,
  quantileSorted,
  standardDeviation,
} from 'simple-statistics';

export interface Interval {
  readonly low: number;
  readonly high: number;
  /** How surely the interval holds the true value: 0.95 asked for; less where there are too few runs for that. */
  readonly confidence: number;
}

export interface Summary {
  readonly count: number;
  readonly median: number;
  readonly interval: Interval;
  readonly mean: number;
  readonly min: number;
  readonly max: number;
  /** Of the sample; 0 for one run. */
  readonly stddev: number;
}

export const CONFIDENCE = 0.95;

/**
 * The interval of the median by order statistics: assumes nothing of the distribution. With n runs the k-th
 * smallest and the k-th largest enclose the true median unless fewer than k of n fair coins fall one way.
 * Under six runs not even smallest and largest do so with 95 %: then these two are given, with what they reach.
 */
export function medianInterval(samples: readonly number[], confidence: number = CONFIDENCE): Interval {
  const sorted = [...samples].sort((a, b) => a - b);
  const n = sorted.length;
  if (n === 0) throw new RangeError('no samples');
  // tail = P(fewer than k of n fall one way), built up term by term from the binomial distribution.
  let term = 2 ** -n;
  let tail = term;
  let k = 1;
  while (2 * k < n) {
    term = (term * (n - k + 1)) / k;
    if (1 - 2 * (tail + term) < confidence) break;
    tail += term;
    k += 1;
  }
  return { low: sorted[k - 1] as number, high: sorted[n - k] as number, confidence: Math.max(0, 1 - 2 * tail) };
}

export function summarize(samples: readonly number[]): Summary {
  if (samples.length === 0) throw new RangeError('no samples');
  const values = [...samples];
  return {
    count: values.length,
    median: median(values),
    interval: medianInterval(values),
    mean: mean(values),
    min: min(values),
    max: max(values),
    stddev: values.length > 1 ? Math.sqrt((standardDeviation(values) ** 2 * values.length) / (values.length - 1)) : 0,
  };
}

/** Uniform numbers in [0, 1) that are the same every time: a report made twice from one record is the same report. */
function* uniform(seed: number): Generator<number, never> {
  let state = seed >>> 0;
  for (;;) {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    yield ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  }
}

const RESAMPLES = 4000;

/** median(ours) / median(baseline), with a bootstrap interval: both sides resampled independently. */
export function medianRatio(ours: readonly number[], baseline: readonly number[]): { value: number } & Interval {
  const base = median([...baseline]);
  if (!(base > 0)) throw new RangeError('the baseline must take time');
  const random = uniform(ours.length * 65537 + baseline.length);
  const resampled = (samples: readonly number[]): number =>
    median(samples.map(() => samples[Math.floor(random.next().value * samples.length)] as number));
  const ratios: number[] = [];
  for (let i = 0; i < RESAMPLES; i++) {
    const denominator = resampled(baseline);
    ratios.push(resampled(ours) / (denominator > 0 ? denominator : base));
  }
  ratios.sort((a, b) => a - b);
  const tail = (1 - CONFIDENCE) / 2;
  return {
    value: median([...ours]) / base,
    low: quantileSorted(ratios, tail),
    high: quantileSorted(ratios, 1 - tail),
    confidence: CONFIDENCE,
  };
}

export interface Effect {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

/** What one round gave. Rounds of one group come from the same processes, and share whatever is particular to those. */
export interface PairedRound {
  readonly group: number;
  readonly ours: number;
  readonly base: number;
}

function medianOf(values: Float64Array): number {
  values.sort();
  const half = values.length >> 1;
  const [below, above] = [values[half - 1], values[half]] as [number, number];
  return values.length % 2 === 1 ? above : (below + above) / 2;
}

/**
 * The median over rounds of ours / base, or of ours - base, with a bootstrap interval: groups are resampled first, and then
 * rounds within them, so that what is particular to a process (where its code and its stacks came to lie) widens the interval.
 */
export function pairedEffect(rounds: readonly PairedRound[], by: 'ratio' | 'difference'): Effect {
  if (rounds.length === 0) throw new RangeError('no rounds');
  const groups = new Map<number, number[]>();
  for (const { group, ours, base } of rounds) {
    if (by === 'ratio' && !(base > 0)) throw new RangeError('the baseline must take time');
    groups.set(group, [...(groups.get(group) ?? []), by === 'ratio' ? ours / base : ours - base]);
  }
  const all = [...groups.values()];
  const random = uniform(rounds.length * 65537 + all.length);
  const one = <T>(from: readonly T[]): T => from[Math.floor(random.next().value * from.length)] as T;
  const medians = Float64Array.from({ length: RESAMPLES }, () =>
    medianOf(
      Float64Array.from(
        all.flatMap(() => {
          const group = one(all);
          return group.map(() => one(group));
        }),
      ),
    ),
  ).sort();
  const tail = (1 - CONFIDENCE) / 2;
  const sorted = [...medians];
  return {
    value: medianOf(Float64Array.from(all.flat())),
    low: quantileSorted(sorted, tail),
    high: quantileSorted(sorted, 1 - tail),
  };
}

/**
 * What slices came to that were taken one right after the other: slices[i][j] is the j-th party's in the i-th. A machine that is
 * slower for a while is so for all in a slice, so what counts is each party's share of its slice; the median of its shares, times
 * the median of the slices' means, is in the unit of the samples.
 */
export function sideBySide(slices: readonly (readonly number[])[]): number[] {
  if (slices.length === 0) throw new RangeError('no slices');
  const means = slices.map((slice) => mean([...slice]));
  if (!means.every((each) => each > 0)) throw new RangeError('a slice must take time');
  const level = median(means);
  const parties = slices[0]?.length ?? 0;
  return Array.from(
    { length: parties },
    (_, j) => level * median(slices.map((slice, i) => (slice[j] as number) / (means[i] as number))),
  );
}

/** Samples of y at one x. */
export interface SamplesAt {
  readonly x: number;
  readonly samples: readonly number[];
}

/** The slope of the straight line of least squares through all samples, with a bootstrap interval: those of each x resampled. */
export function growth(points: readonly SamplesAt[]): Effect {
  const measured = points.filter(({ samples }) => samples.length > 0);
  if (new Set(measured.map(({ x }) => x)).size < 2) throw new RangeError('growth needs samples at two places');
  const fit = (draw: (samples: readonly number[]) => readonly number[]): number =>
    linearRegression(measured.flatMap(({ x, samples }) => draw(samples).map((y) => [x, y]))).m;
  const random = uniform(measured.length * 65537 + measured.flatMap(({ samples }) => samples).length);
  const slopes = Array.from({ length: RESAMPLES }, () =>
    fit((samples) => samples.map(() => samples[Math.floor(random.next().value * samples.length)] as number)),
  ).sort((a, b) => a - b);
  const tail = (1 - CONFIDENCE) / 2;
  return {
    value: fit((samples) => samples),
    low: quantileSorted(slopes, tail),
    high: quantileSorted(slopes, 1 - tail),
  };
}

/** Growth per run: the slope of a straight line through the samples in the order they ran. */
export function slope(samples: readonly number[]): number {
  if (samples.length < 2) throw new RangeError('a slope needs two samples');
  return linearRegression(samples.map((value, index) => [index, value])).m;
}

/** The distance, in scaled deviations from the median, from which a run counts as an outlier. */
const OUTLIER_SCORE = 10;
const NOISY_SPREAD = 0.15;

/** What about these samples makes the result doubtful, and what to do about it. `what` names them for people. */
export function noiseWarnings(what: string, samples: readonly number[]): string[] {
  if (samples.length < 4) return [];
  const warnings: string[] = [];
  const middle = median([...samples]);
  // 1.4826 makes the deviation comparable with a standard deviation; the floor keeps equal samples from
  // turning clock jitter into outliers.
  const scale = Math.max(1.4826 * medianAbsoluteDeviation([...samples]), 0.005 * middle);
  if (!(scale > 0)) return [];
  const outliers = samples.flatMap((value, index) => (Math.abs(value - middle) / scale > OUTLIER_SCORE ? [index] : []));
  if (outliers.length === 1 && outliers[0] === 0 && (samples[0] as number) > middle) {
    warnings.push(
      `${what}: the first run was much slower than the rest. Something was not in the cache yet: use --warmup 1.`,
    );
  } else if (outliers.length > 0) {
    const where = outliers.map((index) => index + 1).join(', ');
    warnings.push(
      `${what}: run ${where} ${outliers.length === 1 ? 'is an outlier' : 'are outliers'}. Other programs were probably busy: repeat on a quiet machine, or with more --runs.`,
    );
  }
  const { interval } = summarize(samples);
  if (middle > 0 && (interval.high - interval.low) / middle > NOISY_SPREAD) {
    const percent = Math.round((100 * (interval.high - interval.low)) / middle);
    warnings.push(`${what}: the median is only known to within ${percent} %. Use more --runs.`);
  }
  return warnings;
}
