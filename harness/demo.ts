// SPDX-License-Identifier: MIT
// `cudapool demo`, which `npm start` ends with: one podman container, restored without and with the pool, and what that means.
import type { Command } from 'commander';
import { wholeNumber } from './arguments.ts';
import { CudapoolError, requireRoot } from './errors.ts';
import { print, printJson, say } from './output.ts';

interface DemoFlags {
  runs: number;
  memory: number;
  json?: boolean;
}

/** What somebody who has seen the table wants to do next. */
const NEXT = [
  'Next:',
  '  bin/cudapool check                                what this machine has, and how to fix what it lacks',
  '  bin/cudapool run -- podman run … IMAGE            start a container of yours, with the shim',
  '  bin/cudapool checkpoint --keep NAME               checkpoint it …',
  '  bin/cudapool restore --keep NAME                  … and restore it with the pool',
  '  bin/cudapool bench --json FILE                    measure again, for the record',
];

async function demo(flags: DemoFlags): Promise<void> {
  requireRoot('checkpoint and restore a container');
  const { runSession } = await import('./bench/session.ts');
  const { restoreSuite } = await import('./bench/suites/restore.ts');
  const { H200_COSTS } = await import('./bench/bed.ts');
  const { guideText } = await import('./bench/guide.ts');
  say(
    'Two podman containers with a CUDA context are checkpointed, one without the pool and one with it, and restored in turn.',
  );
  const { document } = await runSession({
    suites: [restoreSuite],
    costs: H200_COSTS,
    runs: flags.runs,
    warmup: 0,
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
  print('');
  print(guideText(record, host.simulated));
  print('');
  print(
    host.simulated
      ? 'There is no GPU here: the software driver took its place, and spent the times that were measured on an NVIDIA H200.'
      : `Measured on ${host.gpus.join(', ')}.`,
  );
  const { executed_with_stock: stock, executed_with_pool: pool } = record.facts;
  print(
    'After every restore the application was asked what its GPU memory holds, and the answer was right. CRIU executed',
  );
  print(
    `cuda-checkpoint ${stock ?? 'some'} times for a restore without the pool, and ${pool ?? 'some'} times with it: a resident process has the driver warm.`,
  );
  print('');
  for (const line of NEXT) print(line);
}

export function registerDemo(program: Command): void {
  program
    .command('demo')
    .description('restore a real podman container without and with the pool, on the GPU or on the software driver')
    .option('--runs <n>', 'restores each way', wholeNumber(1, 100), 4)
    .option('--memory <mib>', 'GPU memory of the application', wholeNumber(0, 1 << 20), 64)
    .option('--json', 'print the record as JSON')
    .action(demo);
}
