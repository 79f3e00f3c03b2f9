// SPDX-License-Identifier: MIT
// `bench sizes` with chosen ways on the software driver, end to end.
import t from 'tap';
import { skipUnless } from '../support/index.ts';
import { bench, ready } from './fixture.ts';

t.test('chosen ways, each with its own number of runs, and what their size adds', async (t) => {
  if (!skipUnless(t, ready, 'needs root, and CRIU built')) return;
  const args = ['sizes', '--gib', '0.015625,0.03125', '--ways', 'hot=2,staged=1'];
  const records = await bench(t, args, []);
  const order = records.map(({ runs }) => runs.map(({ variant }) => variant).join(' '));
  t.same(order, ['hot-move staged hot-move', 'hot-move staged hot-move']);
  t.ok(records.every(({ runs }) => runs.every(({ verified }) => verified)));
  const [, last] = records;
  const { growth_ms_per_gib: value, growth_ms_per_gib_low: low, growth_ms_per_gib_high: high } = last?.facts ?? {};
  t.ok(Number(low) <= Number(value) && Number(value) <= Number(high), `${low} ${value} ${high}`);
  t.match(last?.verdicts, [{ what: 'growth of hot-move, ms per GiB', value, low, high }], 'with its interval');
});
