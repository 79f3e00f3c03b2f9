// SPDX-License-Identifier: MIT
// Medians, intervals, ratios and warnings against values that can be looked up.
import t from 'tap';
import { alternate } from '../../harness/bench/order.ts';
import { medianInterval, medianRatio, noiseWarnings, slope, summarize } from '../../harness/bench/stats.ts';

const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i + 1);

t.test('a summary of known numbers', async (t) => {
  const summary = summarize([5, 3, 1, 2, 4]);
  t.equal(summary.median, 3);
  t.equal(summary.mean, 3);
  t.equal(summary.min, 1);
  t.equal(summary.max, 5);
  t.equal(summary.count, 5);
  t.ok(Math.abs(summary.stddev - Math.sqrt(2.5)) < 1e-12, 'of the sample, not of the population');
  t.equal(summarize([1, 2, 3, 4]).median, 2.5);
  t.equal(summarize([7]).stddev, 0);
  t.throws(() => summarize([]), RangeError);
});

t.test('the interval of the median is that of the tables of order statistics', async (t) => {
  // n -> ranks of the 95 % interval, from tables of the sign test.
  const table: [n: number, low: number, high: number][] = [
    [6, 1, 6],
    [7, 1, 7],
    [8, 1, 8],
    [9, 2, 8],
    [10, 2, 9],
    [12, 3, 10],
    [15, 4, 12],
    [20, 6, 15],
    [25, 8, 18],
    [50, 18, 33],
    [100, 40, 61],
  ];
  for (const [n, low, high] of table) {
    const interval = medianInterval(upTo(n).reverse());
    t.match(interval, { low, high }, `${n} runs`);
    t.ok(interval.confidence >= 0.95 && interval.confidence <= 1, `${n} runs reach 95 %`);
  }
  const three = medianInterval([10, 30, 20]);
  t.match(three, { low: 10, high: 30 });
  t.equal(three.confidence, 0.75, 'three runs cannot reach more, and say so');
  t.equal(medianInterval([4]).confidence, 0);
});

t.test('a ratio of medians has an interval that holds it, the same each time', async (t) => {
  const baseline = [1.0, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97];
  const ours = baseline.map((value) => value / 2);
  const ratio = medianRatio(ours, baseline);
  t.equal(ratio.value, 0.5);
  t.ok(ratio.low <= 0.5 && ratio.high >= 0.5 && ratio.low > 0.46 && ratio.high < 0.54, JSON.stringify(ratio));
  t.same(medianRatio(ours, baseline), ratio);
  t.throws(() => medianRatio([1], [0]), RangeError);
});

t.test('growth per run', async (t) => {
  t.ok(Math.abs(slope([5, 7, 9, 11]) - 2) < 1e-12);
  t.equal(slope([3, 3, 3]), 0);
  t.throws(() => slope([1]), RangeError);
});

t.test('noise is said, with what to do; quiet samples are not talked about', async (t) => {
  const quiet = [100, 101, 99, 100, 102, 98, 100, 101];
  t.same(noiseWarnings('x', quiet), []);
  t.match(noiseWarnings('x', [400, ...quiet]), [/first run.*--warmup/]);
  t.match(noiseWarnings('x', [...quiet, 400]), [/run 9 is an outlier.*quiet machine/]);
  t.match(noiseWarnings('x', [400, ...quiet, 400]), [/run 1, 10 are outliers/]);
  t.match(noiseWarnings('x', [100, 180, 60, 140, 90, 170, 70]), [/only known to within 120 %.*--runs/]);
  t.same(noiseWarnings('x', [1, 100, 1]), [], 'too few to tell');
});

t.test('the order is ABBA', async (t) => {
  t.equal(alternate(['A', 'B'], 4).join(''), 'ABBAABBA');
  t.equal(alternate(['A', 'B', 'C'], 2).join(''), 'ABCCBA');
  t.same(alternate(['A', 'B'], 0), []);
});
