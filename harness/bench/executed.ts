// SPDX-License-Identifier: MIT
// How often cuda-checkpoint was executed, from the kernel's own record of it, not from anybody's log.
import { executedUnder, watchProcesses } from '../adapters/proc-watch.ts';
import type { Observations } from './record.ts';

/** Watches one run; the metric `executed` is how often cuda-checkpoint was executed in it, whatever its author. */
export async function countExecuted(
  tools: readonly string[],
): Promise<() => Promise<{ values: { executed?: number }; notes: { criu_executed: string } }>> {
  const watch = await watchProcesses(tools);
  return async () => {
    const report = await watch.stop();
    if (report.lost) return { values: {}, notes: { criu_executed: 'the kernel dropped events' } };
    const { watched, names } = executedUnder(report, process.pid, 'criu');
    return { values: { executed: watched }, notes: { criu_executed: names.join(' ') } };
  };
}

/**
 * For each variant the largest count of any of its runs, as `executed_with_NAME`; left out where a run has none,
 * because the kernel dropped events then.
 */
export function executedMost(seen: Observations, variants: readonly string[]): Record<string, number> {
  const facts: Record<string, number> = {};
  for (const variant of variants) {
    const runs = seen.runs.filter((run) => run.variant === variant && run.error === undefined);
    const counts = runs.flatMap((run) => (run.values.executed === undefined ? [] : [run.values.executed]));
    if (counts.length > 0 && counts.length === runs.length) facts[`executed_with_${variant}`] = Math.max(...counts);
  }
  return facts;
}
