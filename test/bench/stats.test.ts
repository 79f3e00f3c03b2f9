// SPDX-License-Identifier: MIT
// Medians, intervals, ratios and warnings against values that can be looked up.
import t from 'tap';
import { alternate, BALANCED, balancedRound } from '../../harness/bench/order.ts';
import {
  growth,
  medianInterval,
  medianRatio,
  noiseWarnings,
  pairedEffect,
  sideBySide,
  slope,
  summarize,
} from '../../harness/bench/stats.ts';

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

t.test('three side by side: each place and each neighbour equally often', async (t) => {
  const rounds = Array.from({ length: 2 * BALANCED }, (_, round) => balancedRound(['A', 'B', 'C'], round));
  const places = new Map<string, number>();
  for (const round of rounds)
    for (const [at, name] of round.entries()) places.set(`${name}${at}`, (places.get(`${name}${at}`) ?? 0) + 1);
  t.same([...places.values()], new Array(9).fill((2 * BALANCED) / 3));
  const order = [...rounds.flat(), 'A']; // as it goes on
  const pairs = new Map<string, number>();
  for (const [i, name] of order.slice(1).entries())
    pairs.set(`${order[i]}${name}`, (pairs.get(`${order[i]}${name}`) ?? 0) + 1);
  t.same([...pairs.keys()].sort(), ['AB', 'AC', 'BA', 'BC', 'CA', 'CB']);
  t.same([...pairs.values()], new Array(6).fill(BALANCED));
  t.throws(() => balancedRound(['A', 'B'], 0), RangeError);
});

t.test('an effect within rounds', async (t) => {
  // A machine that gets slower by a third: the medians of the columns would not show 1 %, the rounds do.
  const drifting = upTo(60).map((i) => ({ group: 0, base: 100 + i / 2, ours: 1.01 * (100 + i / 2) }));
  const effect = pairedEffect(drifting, 'ratio');
  for (const value of Object.values(effect)) t.ok(Math.abs(value - 1.01) < 1e-9);
  t.same(pairedEffect([{ group: 0, base: 5, ours: 7 }], 'difference'), { value: 2, low: 2, high: 2 });

  const noisy = upTo(60).map((i) => ({ group: 0, base: 100, ours: 100 + ((i * 7) % 11) - 5 }));
  const { value, low, high } = pairedEffect(noisy, 'difference');
  t.ok(low <= value && value <= high && low < 0.5 && high > -0.5 && high - low < 5, `${low} ${value} ${high}`);
  t.same(pairedEffect(noisy, 'difference'), { value, low, high }, 'the same each time');

  // Four sets of processes, each with an offset of its own: within a group nothing varies, and the interval spans the groups.
  const grouped = upTo(40).map((i) => ({ group: i % 4, base: 10, ours: 10 + (i % 4) }));
  const wide = pairedEffect(grouped, 'difference');
  t.ok(wide.low <= 0.5 && wide.high >= 2.5, 'what is particular to processes counts');
  t.throws(() => pairedEffect([], 'ratio'), RangeError);
  t.throws(() => pairedEffect([{ group: 0, base: 0, ours: 1 }], 'ratio'), RangeError);
});

t.test('slices side by side', async (t) => {
  // The machine is half as fast for a while, and one slice was disturbed in one party's part: neither is in the ratio.
  const speeds = upTo(18).map((i) => (i < 7 ? 100 : 200));
  const [without = 0, ours = 0, again = 0] = sideBySide(
    speeds.map((speed, i) => [speed, 1.01 * speed, i === 3 ? 9 * speed : speed]),
  );
  t.ok(Math.abs(ours / without - 1.01) < 1e-9 && Math.abs(again / without - 1) < 1e-9);
  t.ok(Math.abs((without + ours + again) / 3 - 200 * (3.01 / 3)) < 1e-9, 'in the unit of the samples');
  t.same(sideBySide([[4, 2]]), [4, 2]);
  t.throws(() => sideBySide([]), RangeError);
  t.throws(() => sideBySide([[0, 0]]), RangeError);
});

t.test('growth by least squares', async (t) => {
  const line = (x: number, ...off: number[]) => ({ x, samples: off.map((y) => 400 + 4 * x + y) });
  const exact = growth([line(1, 0), line(8, 0), line(32, 0)]);
  for (const value of Object.values(exact)) t.ok(Math.abs(value - 4) < 1e-9);
  const noisy = growth([line(1, -10, 0, 10), line(16, -10, 0, 10), line(32, -10, 0, 10)]);
  t.ok(Math.abs(noisy.value - 4) < 1e-9 && noisy.low < 4 && noisy.high > 4 && noisy.high - noisy.low < 1.5);
  t.throws(() => growth([line(1, 0, 1), { x: 2, samples: [] }]), RangeError, 'one place is no growth');
});
