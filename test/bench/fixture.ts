// SPDX-License-Identifier: MIT
// A record as a bench leaves it, for the tests of what reads records; and a bench on the software driver, which must succeed.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { type BenchRecord, conclude, type Host, type Observations, readDocument } from '../../harness/bench/record.ts';
import { builtCriu, cudapool, isRoot, tempDir } from '../support/index.ts';

export const host: Host = {
  kernel: '6.18.0',
  cpu: 'a processor',
  cores: 2,
  memory_mib: 24_576,
  gpus: ['NVIDIA H200'],
  driver: '580.159.04, CUDA 13.0',
  criu: '4.2.1',
  podman: '4.3.1',
  runtime: 'runc version 1.1.5',
  node: 'v20.20.2',
  project: '0.3.0',
  commit: '0123456789abcdef',
  simulated: false,
  softcuda_costs: null,
};

export const STOCK_MS = [980, 1000, 990, 1010, 1005, 995, 985];
export const POOL_MS = [500, 510, 505, 495, 500, 490, 515];

export function observations(stock: readonly number[] = STOCK_MS, pool: readonly number[] = POOL_MS): Observations {
  const runs = stock.flatMap((value, round) => {
    const pair = [
      { variant: 'stock', restore_ms: value },
      { variant: 'pool', restore_ms: pool[round] as number },
    ];
    return round % 2 === 0 ? pair : pair.reverse();
  });
  return {
    suite: 'criu',
    case: '0mib',
    title: 'A fixture.',
    started: '2026-11-22T10:00:00.000Z',
    ended: '2026-11-22T10:01:00.000Z',
    complete: true,
    setup: { memory_mib: 0 },
    variants: [
      { name: 'stock', label: 'Without context pool' },
      { name: 'pool', label: 'With context pool' },
    ],
    metrics: [{ name: 'restore_ms', unit: 'ms', label: 'restore' }],
    targets: [
      { kind: 'ratio', what: 'restore, of stock', metric: 'restore_ms', variant: 'pool', baseline: 'stock', max: 0.6 },
      { kind: 'at_most', what: 'restore', metric: 'restore_ms', variant: 'pool', max: 100 },
      { kind: 'fact', what: 'executed', fact: 'executed_with_pool', max: 0 },
    ],
    runs: runs.map(({ variant, restore_ms }, i) => ({
      order: i + 1,
      variant,
      warmup: false,
      values: { restore_ms },
      verified: true,
    })),
    facts: { executed_with_pool: 0 },
    warnings: [],
  };
}

export const record = (...arguments_: Parameters<typeof observations>): BenchRecord =>
  conclude(observations(...arguments_));

export const ready = isRoot && builtCriu('4.2.1').ready;

/** Its records. */
export async function bench(t: Test, args: readonly string[], runs: readonly string[] = ['--runs', '1']) {
  const file = join(tempDir(t), 'record.json');
  const scratch = mkdtempSync('/tmp/b'); // podman wants short names
  t.teardown(() => rmSync(scratch, { recursive: true, force: true }));
  const common = ['--driver', 'softcuda', '--costs', 'none', ...runs, '--json', file];
  const ran = await cudapool(['bench', ...args, ...common], {
    timeoutMs: 110_000,
    env: { CUDAPOOL_SCRATCH: scratch, TMPDIR: scratch },
  });
  t.equal(ran.exitCode, 0, ran.stderr);
  t.same(readdirSync(scratch), [], 'nothing is left behind');
  return (await readDocument(file)).records;
}
