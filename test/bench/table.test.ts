// SPDX-License-Identifier: MIT
// The table is the guide's, to the character.
import { readFileSync } from 'node:fs';
import t from 'tap';
import { summarize } from '../../harness/bench/stats.ts';
import { formatNumber, guideTable, improvementLine, medianText } from '../../harness/bench/table.ts';
import { inRoot } from '../../harness/paths.ts';

/** Three samples with this mean, minimum and maximum. */
const samples = (mean: number, min: number, max: number): number[] => [min, 3 * mean - min - max, max];

// The guide's step 8, as it stands there.
const GUIDE = `┌───────────────────────┬─────────────────┬─────────┬─────────┬──────────┐
│ CRIU                  │ Avg Restore (s) │ Min (s) │ Max (s) │  Speedup │
├───────────────────────┼─────────────────┼─────────┼─────────┼──────────┤
│ Without context pool  │           5.688 │   5.631 │   5.723 │     1.00x│
│ With context pool     │           5.000 │   4.950 │   5.050 │     1.14x│
└───────────────────────┴─────────────────┴─────────┴─────────┴──────────┘`;

const without = summarize(samples(5.688, 5.631, 5.723));
const withPool = summarize(samples(5.0, 4.95, 5.05));

t.test('the table', async (t) => {
  const table = guideTable([
    { label: 'Without context pool', summary_s: without },
    { label: 'With context pool', summary_s: withPool },
  ]);
  t.equal(table, GUIDE);
});

t.test('it is still the one in the guide', async (t) => {
  let guide: string;
  try {
    guide = readFileSync(inRoot('..', 'shared', 'implementation-guide.md'), 'utf8');
  } catch {
    t.pass('the guide is not beside this checkout', { skip: true });
    return;
  }
  const lines = guide.split('\n').map((line) => line.replace(/^# /, ''));
  for (const line of GUIDE.split('\n')) t.ok(lines.includes(line), line);
  t.ok(lines.includes(improvementLine(without, withPool)));
});

t.test('the improvement line', async (t) => {
  t.equal(improvementLine(without, withPool), 'Improvement: 0.688s faster (12% improvement)');
  t.equal(improvementLine(withPool, without), 'Improvement: none: 0.688s slower (14%)');
});

t.test('a median says how sure it is', async (t) => {
  t.equal(medianText(summarize([1, 2, 3]), 's'), '2.000 s (1.000 to 3.000, 75 %)');
  t.match(medianText(summarize([1, 2, 3, 4, 5, 6, 7]), 's'), /^4\.000 s \(1\.000 to 7\.000, 98 %\)$/);
});

t.test('numbers for people', async (t) => {
  const shown = [0, 0.0123, 1.23456, 12.3456, 123.456, 1234.56, -2.5].map(formatNumber);
  t.same(shown, ['0', '0.012', '1.235', '12.35', '123.5', '1235', '-2.500']);
});
