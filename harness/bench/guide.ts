// SPDX-License-Identifier: MIT
// A record of restores as the guide's step 8 shows it.
import { type BenchRecord, samples } from './record.ts';
import { summarize } from './stats.ts';
import { guideTable, improvementLine, medianText } from './table.ts';

/** Whether it compares restores without and with the pool. */
export const isGuideRecord = (record: BenchRecord): boolean =>
  record.metrics.some(({ name }) => name === 'restore_ms') && record.variants.some(({ name }) => name === 'stock');

/** The guide's table with its improvement line, then medians with intervals; empty if one side has no run. */
export function guideText(record: BenchRecord, simulated: boolean): string {
  const rows = record.variants.flatMap(({ name, label }) => {
    const values = samples(record, 'restore_ms', name).map((value) => value / 1000);
    return values.length === 0 ? [] : [{ label, summary_s: summarize(values) }];
  });
  const [baseline, ours] = rows;
  if (baseline === undefined || ours === undefined) return '';
  return [
    guideTable(rows),
    '',
    improvementLine(baseline.summary_s, ours.summary_s),
    '',
    ...rows.map(({ label, summary_s }) => `${label}: median ${medianText(summary_s, 's')}, ${summary_s.count} runs`),
    ...(simulated ? ['simulated: the software driver spent times that were measured on a GPU; no GPU was used'] : []),
  ].join('\n');
}
