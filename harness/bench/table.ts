// SPDX-License-Identifier: MIT
// Tables for people: the user's guide's box with its improvement line, and the line of median and interval.
import type { Summary } from './stats.ts';

const COLUMNS = [
  { title: 'CRIU', width: 21 },
  { title: 'Avg Restore (s)', width: 15 },
  { title: 'Min (s)', width: 7 },
  { title: 'Max (s)', width: 7 },
  { title: 'Speedup', width: 8 },
] as const;

export interface GuideRow {
  readonly label: string;
  readonly summary_s: Summary;
}

const seconds = (value: number): string => value.toFixed(3);

function rule(left: string, middle: string, right: string): string {
  return left + COLUMNS.map(({ width }) => '─'.repeat(width + 2)).join(middle) + right;
}

/** The table of the guide's step 8; the first row is the baseline. */
export function guideTable(rows: readonly GuideRow[]): string {
  const baseline = rows[0];
  if (baseline === undefined) throw new RangeError('a table needs a row');
  const head = COLUMNS.map(({ title, width }, i) => ` ${i === 0 ? title.padEnd(width) : title.padStart(width)} `);
  const body = rows.map(({ label, summary_s }) => {
    const speedup = `${(baseline.summary_s.mean / summary_s.mean).toFixed(2)}x`;
    const cells = [seconds(summary_s.mean), seconds(summary_s.min), seconds(summary_s.max)].map(
      (text, i) => ` ${text.padStart((COLUMNS[i + 1] as (typeof COLUMNS)[number]).width)} `,
    );
    // The guide sets the last column flush with its border.
    return `│ ${label.padEnd(COLUMNS[0].width)} │${cells.join('│')}│${speedup.padStart(COLUMNS[4].width + 2)}│`;
  });
  return [rule('┌', '┬', '┐'), `│${head.join('│')}│`, rule('├', '┼', '┤'), ...body, rule('└', '┴', '┘')].join('\n');
}

/** 'Improvement: 0.688s faster (12% improvement)', from the averages as in the guide; honest where it is none. */
export function improvementLine(baseline: Summary, ours: Summary): string {
  const gain = baseline.mean - ours.mean;
  const percent = Math.round((100 * Math.abs(gain)) / baseline.mean);
  return gain >= 0
    ? `Improvement: ${seconds(gain)}s faster (${percent}% improvement)`
    : `Improvement: none: ${seconds(-gain)}s slower (${percent}%)`;
}

/** '1.234 s (1.200 to 1.301, 95 %)': a median with its interval. */
export function medianText(summary: Summary, unit: string): string {
  const number = (value: number): string => formatNumber(value);
  const { low, high, confidence } = summary.interval;
  const sure = `${Math.floor(confidence * 100)} %`;
  return `${number(summary.median)} ${unit} (${number(low)} to ${number(high)}, ${sure})`;
}

/** Four significant digits, no exponent, no needless zeros dropped from times that stand under each other. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const magnitude = Math.abs(value);
  if (magnitude === 0) return '0';
  const digits = magnitude >= 1000 ? 0 : magnitude >= 100 ? 1 : magnitude >= 10 ? 2 : 3;
  return value.toFixed(digits);
}
