// SPDX-License-Identifier: MIT
// The suites about parked memory on the software driver, end to end: each variant goes the way that it is named after.
import t from 'tap';
import { limitText } from '../../harness/bench/export.ts';
import { conclude } from '../../harness/bench/record.ts';
import { expectedChecksum } from '../../harness/container/ask.ts';
import { skipUnless } from '../support/index.ts';
import { bench, observations, ready } from './fixture.ts';

t.test('a checksum of several pieces, partly zero', async (t) => {
  t.equal(expectedChecksum(16 << 18, 1), '002548098f000000', 'as gpu_app found it, and a few lines of Python');
  t.equal(expectedChecksum(16 << 18, 1, { pieces: 4, filled: 4 << 18 }), 'a80fdbac11c00000');
});

t.test('targets from below', async (t) => {
  const target = { kind: 'at_least', what: 'load', metric: 'restore_ms', variant: 'pool', min: 500 } as const;
  const judged = (min: number, pool?: number[]) =>
    conclude({ ...observations([1000], pool ?? [500]), targets: [{ ...target, min }] }).verdicts[0];
  t.match(judged(500), { met: true, min: 500, value: 500 });
  t.match(judged(501), { met: false });
  t.match(judged(1, []), { met: false, value: null }, 'no figure is not met');
  t.equal(limitText({ min: 40 }), 'at least 40.00');
  t.equal(limitText({ max: 5 }), 'at most 5.000');
  t.equal(limitText({ min: 1, max: 2 }), '1.000 to 2.000');
});

t.test('one size, each way back', async (t) => {
  if (!skipUnless(t, ready, 'needs root, and CRIU built')) return;
  const [record, ...others] = await bench(t, ['sizes', '--gib', '0.015625']);
  t.same(others, []);
  t.same(
    record?.runs.map(({ variant, verified }) => [variant, verified]),
    [
      ['stock', true],
      ['hot-move', true],
      ['hot-copy', true],
      ['staged', true],
    ],
  );
  const ours = record?.runs.slice(1) ?? [];
  t.match(
    ours.map(({ notes }) => notes?.memory),
    [/given from the GPU/, /copied on the GPU/, /loaded from the image/],
    "by the pool's own record",
  );
  for (const { values } of ours) t.match(values, { parked_mib: 16 }, 'all of it was parked');
});

t.test('programs with work in flight', async (t) => {
  if (!skipUnless(t, ready, 'needs root, and CRIU built')) return;
  const [record] = await bench(t, ['frameworks']);
  t.equal(record?.facts.not_identical, 0);
  t.ok(record?.unlike, 'none of them is a baseline');
  const parked = Object.fromEntries((record?.runs ?? []).map(({ variant, values }) => [variant, values]));
  t.match(parked.alloc, { parked_mib: 32 });
  t.match(parked.map, { parked_mib: 32 });
  t.match(parked.managed, { parked_mib: 0, left_managed_mib: 32 });
});
