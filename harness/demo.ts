// SPDX-License-Identifier: MIT
// `cudapool demo`, which `npm start` ends with: one podman container, restored without and with the pool, and what became of its GPU memory.
import { availableParallelism, loadavg } from 'node:os';
import type { Command } from 'commander';
import { wholeNumber } from './arguments.ts';
import { CudapoolError, requireRoot } from './errors.ts';
import { count, print, printJson, say, warn } from './output.ts';

interface DemoFlags {
  runs: number;
  memory?: number;
  json?: boolean;
}

/** What somebody who has seen the table wants to do next. */
const NEXT = [
  'Next:',
  '  bin/cudapool check                                what this machine has, and how to fix what it lacks',
  '  bin/cudapool run -- podman run … IMAGE            start a container of yours, with the shim',
  '  bin/cudapool checkpoint --keep NAME               checkpoint it …',
  '  bin/cudapool restore --keep NAME                  … and restore it with the pool',
  '  bin/cudapool status                               what the pool has, and the last restores',
  '  bin/cudapool bench --json FILE                    measure again, for the record',
];

async function demo(flags: DemoFlags): Promise<void> {
  requireRoot('checkpoint and restore a container');
  const { runSession } = await import('./bench/session.ts');
  const { demoSuite } = await import('./bench/suites/sizes.ts');
  const { H200_COSTS } = await import('./bench/bed.ts');
  const { guideText } = await import('./bench/guide.ts');
  const { samples } = await import('./bench/record.ts');
  const { summarize } = await import('./bench/stats.ts');
  say(
    'Two podman containers with memory on a GPU are checkpointed and restored in turn: one without the pool, one with it.',
  );
  const [load = 0] = loadavg();
  if (load > availableParallelism() / 2) {
    warn(
      `this machine is busy (load ${load.toFixed(1)}, ${count(availableParallelism(), 'processor')}): times will be longer, and ratios unsteady`,
      'do it again when nothing else runs, or with --runs 10',
    );
  }
  const { document } = await runSession({
    suites: [demoSuite],
    costs: H200_COSTS,
    runs: flags.runs,
    memoryMib: flags.memory,
  });
  const { host, records } = document;
  const record = records[0];
  const bad = record?.runs.filter((run) => run.error !== undefined || !run.verified) ?? [];
  if (record === undefined || bad.length > 0) {
    throw new CudapoolError('ERR_CUDAPOOL_DEMO', `${bad.length} of the restores failed`, {
      lines: bad.map((run) => run.error ?? `run ${run.order}: the application's answer was wrong`),
      hint: '`bin/cudapool check` says what is wrong with this machine',
    });
  }
  if (flags.json === true) {
    printJson({ schema: 'cudapool.demo/1', host, record });
    return;
  }
  const median = (metric: string, variant: string): number => summarize(samples(record, metric, variant)).median;
  const dumps = (['stock', 'hot-move'] as const).map((variant) => (median('checkpoint_ms', variant) / 1000).toFixed(3));
  const memoryOf = (variant: string): string =>
    String(record.runs.findLast((run) => run.variant === variant)?.notes?.memory ?? 'no record');
  print('');
  print(guideText(record, host.simulated));
  print('');
  print(
    `The checkpoint itself took ${dumps[0]} s without the pool and ${dumps[1]} s with it, the image of the GPU memory included.`,
  );
  print(`  kept hot:    ${memoryOf('hot-move')}`);
  print(`  from image:  ${memoryOf('staged')}`);
  print(`  on disk:     ${median('image_mib', 'hot-move').toFixed(1)} MiB`);
  print('');
  print(
    host.simulated
      ? 'There is no GPU here: the software driver took its place, and spent the times that were measured on an NVIDIA H200.'
      : `Measured on ${host.gpus.join(', ')}.`,
  );
  print('After every restore the application was asked what its GPU memory holds, and the answer was right.');
  print('');
  for (const line of NEXT) print(line);
}

export function registerDemo(program: Command): void {
  program
    .command('demo')
    .description('restore a real podman container without and with the pool, on the GPU or on the software driver')
    .option('--runs <n>', 'restores each way', wholeNumber(1, 100), 3)
    .option(
      '--memory <mib>',
      'GPU memory of the application (default: 4096 on a GPU, 64 without)',
      wholeNumber(16, 1 << 20),
    )
    .option('--json', 'print the record as JSON')
    .action(demo);
}
