// SPDX-License-Identifier: MIT
// The runs of a suite: their order, failures, warm-ups, the time budget, and that the end is tidied up.
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { type Experiment, runExperiment } from '../../harness/bench/experiment.ts';
import type { BenchRecord } from '../../harness/bench/record.ts';

function experiment(run: Experiment['run'], more: Partial<Experiment> = {}): Experiment {
  return {
    suite: 'x',
    title: 'x',
    setup: {},
    variants: [
      { name: 'a', label: 'A' },
      { name: 'b', label: 'B' },
    ],
    metrics: [{ name: 'ms', unit: 'ms', label: 'time' }],
    run,
    ...more,
  };
}

const fine = async () => ({ verified: true, values: { ms: 1 } });

t.test('alternating, prepared each time, warm-ups marked, told after each run', async (t) => {
  const calls: string[] = [];
  const told: number[] = [];
  const record = await runExperiment(
    experiment(
      async (variant, order) => {
        calls.push(`run ${variant}`);
        return { verified: true, values: { ms: order } };
      },
      {
        prepare: async (variant) => {
          calls.push(`prepare ${variant}`);
        },
        facts: (seen) => ({ runs: seen.runs.length }),
        finish: async () => {
          calls.push('finish');
        },
      },
    ),
    { runs: 2, warmup: 1 },
    (seen, last) => {
      if (last !== undefined) told.push(seen.runs.length);
    },
  );
  t.same(record.runs.map(({ variant }) => variant).join(''), 'abbaab');
  t.same(
    record.runs.map(({ warmup }) => warmup),
    [true, true, false, false, false, false],
  );
  t.same(calls.slice(0, 4), ['prepare a', 'run a', 'prepare b', 'run b']);
  t.equal(calls.at(-1), 'finish');
  t.same(told, [1, 2, 3, 4, 5, 6]);
  t.same(
    record.results.map(({ summary }) => summary.median),
    [4.5, 4.5],
  );
  t.ok(record.complete);
  t.same(record.facts, { runs: 6 });
});

t.test('a run that fails is recorded and the rest goes on; three in a row end it', async (t) => {
  const once = await runExperiment(
    experiment(async (_variant, order) => {
      if (order === 2) throw new Error('it broke');
      return fine();
    }),
    { runs: 2, warmup: 0 },
    () => {},
  );
  t.match(once.runs, [{ order: 1 }, { order: 2, error: 'it broke', verified: false }, { order: 3 }, { order: 4 }]);

  let finished = false;
  const never = await runExperiment(
    experiment(
      async () => {
        throw new Error('always');
      },
      {
        finish: async () => {
          finished = true;
        },
      },
    ),
    { runs: 50, warmup: 0 },
    () => {},
  );
  t.equal(never.runs.length, 3);
  t.match(never.warnings, [/3 failures in a row/]);
  t.ok(finished);
});

t.test('the end is tidied up after a failure, which is what is told', async (t) => {
  let finished = false;
  const broken = experiment(fine, {
    facts: () => {
      throw new Error('first');
    },
    finish: async () => {
      finished = true;
      throw new Error('second');
    },
  });
  await t.rejects(
    runExperiment(broken, { runs: 1, warmup: 0 }, () => {}),
    { message: 'first' },
  );
  t.ok(finished);
});

t.test('the budget leaves out whole rounds, never the first', async (t) => {
  const slow = async () => {
    await sleep(20);
    return fine();
  };
  const seen: BenchRecord[] = [];
  const cut = await runExperiment(
    experiment(slow),
    { runs: 1000, warmup: 0, deadline: performance.now() + 200 },
    (r) => {
      seen.push(r);
    },
  );
  t.ok(cut.runs.length >= 2 && cut.runs.length < 20 && cut.runs.length % 2 === 0, `${cut.runs.length} runs`);
  t.match(cut.warnings[0], /time budget ended after \d+ of 1000 runs/);
  t.ok(
    seen.every((r, i) => i === seen.length - 1 || !r.complete),
    'incomplete until the end',
  );
  const late = await runExperiment(experiment(slow), { runs: 5, warmup: 0, deadline: performance.now() - 1 }, () => {});
  t.equal(late.runs.length, 2, 'one round at least');
});
