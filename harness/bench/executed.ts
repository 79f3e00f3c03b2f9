// SPDX-License-Identifier: MIT
// How often cuda-checkpoint was executed, from the kernel's own record of it, not from anybody's log.
import { executedUnder, type ProcWatch, watchProcesses } from '../adapters/proc-watch.ts';
import { asCudapoolError, EXIT } from '../errors.ts';
import type { Observations } from './record.ts';

export interface Counted<T> {
  readonly result: T;
  readonly values: { readonly executed?: number };
  readonly notes: { readonly criu_executed: string };
}

const unknown = (why: string) => ({ values: {}, notes: { criu_executed: `not known: ${why}` } });

/**
 * Does the work of one run; the metric `executed` is how often cuda-checkpoint was executed in it, whichever of them.
 * Where the kernel does not let itself be asked, the run goes without that figure, and the note says why.
 */
export async function countExecuted<T>(tools: readonly string[], work: () => Promise<T>): Promise<Counted<T>> {
  let watch: ProcWatch;
  try {
    watch = await watchProcesses(tools);
  } catch (thrown) {
    const error = asCudapoolError(thrown);
    if (error.exit === EXIT.INTERRUPTED) throw error;
    return { result: await work(), ...unknown(error.message) };
  }
  let result: T;
  try {
    result = await work();
  } catch (thrown) {
    await watch.stop().catch(() => {}); // what the work said is what counts
    throw thrown;
  }
  const report = await watch.stop();
  if (report.lost) return { result, ...unknown('the kernel dropped events') };
  const { watched, names } = executedUnder(report, process.pid, 'criu');
  return { result, values: { executed: watched }, notes: { criu_executed: names.join(' ') } };
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
