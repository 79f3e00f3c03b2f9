// SPDX-License-Identifier: MIT
// A document against an earlier one: which medians grew by more than is allowed.
import { CudapoolError, EXIT } from '../errors.ts';
import { recordTitle } from './export.ts';
import type { BenchDocument } from './record.ts';

export interface Change {
  readonly where: string;
  readonly before: number;
  readonly after: number;
  readonly unit: string;
  /** How much more than before, in percent; negative: less. */
  readonly percent: number;
  readonly regressed: boolean;
}

/** Compares what both documents hold. Less is better in every metric that this project records. */
export function compareDocuments(before: BenchDocument, after: BenchDocument, maxRegressionPercent: number): Change[] {
  if (before.host.simulated !== after.host.simulated) {
    throw new CudapoolError(
      'ERR_CUDAPOOL_BASELINE',
      'one record is simulated and the other is not: they cannot be compared',
      {
        hint: 'give a baseline from the same kind of machine',
        exit: EXIT.USAGE,
      },
    );
  }
  const changes = after.records.flatMap((record) => {
    const earlier = before.records.find((other) => recordTitle(other) === recordTitle(record));
    if (earlier === undefined) return [];
    return record.results.flatMap((result): Change[] => {
      const old = earlier.results.find((other) => other.metric === result.metric && other.variant === result.variant);
      if (old === undefined || !(old.summary.median > 0)) return [];
      const percent = 100 * (result.summary.median / old.summary.median - 1);
      return [
        {
          where: `${recordTitle(record)}, ${result.variant}, ${result.metric}`,
          before: old.summary.median,
          after: result.summary.median,
          unit: record.metrics.find(({ name }) => name === result.metric)?.unit ?? '',
          percent,
          // Beyond the limit, and not explained by the scatter of either side.
          regressed: percent > maxRegressionPercent && result.summary.interval.low > old.summary.interval.high,
        },
      ];
    });
  });
  if (changes.length === 0) {
    throw new CudapoolError('ERR_CUDAPOOL_BASELINE', 'the two records have no suite in common', {
      hint: 'give a baseline that ran the same suites',
      exit: EXIT.USAGE,
    });
  }
  return changes;
}
