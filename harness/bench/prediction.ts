// SPDX-License-Identifier: MIT
// What the software driver's file of measured costs says that the pool must gain, beside what was gained.
import { readFileSync } from 'node:fs';
import type { Bed } from './bed.ts';
import { type Observations, samples, type Target } from './record.ts';
import { summarize } from './stats.ts';

/** A file of costs: lines of `name = number` (softcuda/costs-h200.conf). */
export function readCosts(file: string): ReadonlyMap<string, number> {
  const costs = new Map<string, number>();
  for (const [, name, value] of readFileSync(file, 'utf8').matchAll(
    /^\s*([a-z][a-z0-9_]*)\s*=\s*([\d.]+)\s*(?:#.*)?$/gm,
  )) {
    costs.set(name as string, Number(value));
  }
  return costs;
}

/**
 * What the restores' GPU part costs. Upstream's plugin executes cuda-checkpoint for the restore thread, the restore and the
 * unlock; each initialises the driver: cold, until the restored process itself has it open. The pool's driver is
 * warm, and it executes nothing.
 */
export function predictedGainMs(costs: ReadonlyMap<string, number>): number {
  const cost = (name: string): number => {
    const value = costs.get(name);
    if (value === undefined) throw new RangeError(`no cost named ${name}`);
    return value;
  };
  const coldTool = cost('init_cold_ms') + cost('tool_cold_ms');
  const warmTool = cost('init_warm_ms') + cost('tool_warm_ms');
  return 2 * coldTool + warmTool + cost('restore_cold_ms') - cost('restore_warm_ms');
}

/** Facts for a record that compares the two ways; none on a GPU, where there is nothing to predict from. */
export function gainFacts(bed: Pick<Bed, 'costs'>, seen: Observations, metric: string): Record<string, number> {
  const stock = samples(seen, metric, 'stock');
  const pool = samples(seen, metric, 'pool');
  if (bed.costs === undefined || stock.length === 0 || pool.length === 0) return {};
  const predicted = predictedGainMs(readCosts(bed.costs));
  const measured = summarize(stock).median - summarize(pool).median;
  return { predicted_gain_ms: predicted, measured_gain_ms: measured, measured_of_predicted_gain: measured / predicted };
}

/** The same as a target: what is gained is what the costs predict. Of fewer runs the median says little. */
export const gainTargets = (bed: Pick<Bed, 'costs'>): Target[] =>
  bed.costs === undefined
    ? []
    : [
        {
          kind: 'fact',
          what: 'gain, of what the costs predict',
          fact: 'measured_of_predicted_gain',
          min: 0.8,
          max: 1.25,
          runs: 7,
        },
      ];
