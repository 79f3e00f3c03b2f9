// SPDX-License-Identifier: MIT
// Records as markdown and CSV.
import { markdownTable } from 'markdown-table';
import {
  type BenchDocument,
  type BenchRecord,
  failedRuns,
  type Host,
  type Result,
  samples,
  type Verdict,
} from './record.ts';
import { medianRatio } from './stats.ts';
import { formatNumber } from './table.ts';

const CELL = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function intervalText({ summary }: Result): string {
  const { low, high, confidence } = summary.interval;
  return `${formatNumber(low)} to ${formatNumber(high)}${confidence < 0.95 ? ` (${Math.floor(confidence * 100)} %)` : ''}`;
}

function ratioText(record: BenchRecord, result: Result): string {
  const baseline = record.variants[0]?.name;
  if (baseline === undefined || result.variant === baseline) return '';
  const against = samples(record, result.metric, baseline);
  if (against.length === 0 || !against.some((value) => value > 0)) return '';
  const { value, low, high } = medianRatio(samples(record, result.metric, result.variant), against);
  return `${value.toFixed(2)} (${low.toFixed(2)} to ${high.toFixed(2)})`;
}

function resultTable(record: BenchRecord): string {
  const comparing = record.variants.length > 1 && record.unlike === undefined;
  const head = ['', 'median', '95 % interval', 'mean', 'min', 'max', 'runs', ...(comparing ? ['of baseline'] : [])];
  const rows = record.results.map((result) => {
    const metric = record.metrics.find(({ name }) => name === result.metric);
    const variant = record.variants.find(({ name }) => name === result.variant);
    const { summary } = result;
    return [
      CELL(`${variant?.label ?? result.variant}: ${metric?.label ?? result.metric}`),
      `${formatNumber(summary.median)} ${metric?.unit ?? ''}`.trim(),
      intervalText(result),
      formatNumber(summary.mean),
      formatNumber(summary.min),
      formatNumber(summary.max),
      String(summary.count),
      ...(comparing ? [ratioText(record, result)] : []),
    ];
  });
  return markdownTable([head, ...rows], { align: ['l', 'r', 'r', 'r', 'r', 'r', 'r', 'r'] });
}

/** 'at most 5', 'at least 40', '0.8 to 1.25'. */
export function limitText({ min, max }: Pick<Verdict, 'min' | 'max'>): string {
  if (min === undefined) return max === undefined ? 'any' : `at most ${formatNumber(max)}`;
  return max === undefined ? `at least ${formatNumber(min)}` : `${formatNumber(min)} to ${formatNumber(max)}`;
}

const rangeText = ({ low, high }: { low: number; high: number }): string =>
  `${formatNumber(low)} to ${formatNumber(high)}`;

/** 'holds', 'missed', …; the second: it is not as it should be. */
function outcome({ answer, met }: Verdict): string {
  if (answer === undefined) return met ? 'met' : '**missed**';
  return met ? answer : `**${answer}**`;
}

/** 'restore of 1 GiB, of stock: 0.216 (0.210 to 0.220), target at most 0.2'. */
export function verdictText(verdict: Verdict): string {
  const { what, value, low, high, control } = verdict;
  const bounds = low !== undefined && high !== undefined ? ` (${rangeText({ low, high })})` : '';
  const got = value === null ? 'no figure' : `${formatNumber(value)}${bounds}`;
  const noise =
    control === undefined ? '' : `; the baseline against itself ${formatNumber(control.value)} (${rangeText(control)})`;
  return `${what}: ${got}, target ${limitText(verdict)}${noise}`;
}

const verdictLine = (verdict: Verdict): string => `- ${outcome(verdict)}: ${verdictText(verdict)}`;

export function recordTitle(record: BenchRecord): string {
  return record.case === undefined ? record.suite : `${record.suite} (${record.case})`;
}

/** One suite as a section of markdown. */
export function recordMarkdown(record: BenchRecord, host: Host): string {
  const failed = failedRuns(record);
  const unverified = record.runs.filter((run) => run.error === undefined && !run.verified).length;
  const setup = Object.entries(record.setup).map(([key, value]) => `${key} ${value}`);
  const facts = Object.entries(record.facts).map(([key, value]) => [CELL(key), CELL(String(value))]);
  const parts = [
    `### ${recordTitle(record)}${host.simulated ? ' — simulated' : ''}`,
    record.title,
    `${record.started}; ${setup.join(', ')}${record.complete ? '' : '; **ended early**'}`,
    record.results.length > 0 ? resultTable(record) : '(no run succeeded)',
    record.verdicts.map(verdictLine).join('\n'),
    facts.length > 0 ? markdownTable([['fact', 'value'], ...facts]) : '',
    failed.length > 0
      ? `**${failed.length} failed run${failed.length === 1 ? '' : 's'}**:\n${failed
          .map((run) => `- run ${run.order} (${run.variant}): ${CELL(run.error ?? '')}`)
          .join('\n')}`
      : '',
    unverified > 0 ? `**${unverified} run${unverified === 1 ? '' : 's'} whose answer was not verified**` : '',
    record.warnings.map((warning) => `- warning: ${warning}`).join('\n'),
  ];
  return parts.filter((part) => part !== '').join('\n\n');
}

export function hostLine(host: Host): string {
  const parts = [
    host.simulated
      ? `software driver${host.softcuda_costs === null ? '' : ` with measured costs ${host.softcuda_costs.slice(0, 12)}`}`
      : host.gpus.join(', '),
    host.driver === null ? '' : `driver ${host.driver}`,
    `${host.cpu}, ${host.cores} cores, ${Math.round(host.memory_mib / 1024)} GiB`,
    `Linux ${host.kernel}`,
    host.criu === null ? '' : `CRIU ${host.criu}`,
    host.podman === null ? '' : `podman ${host.podman}`,
    host.runtime ?? '',
    `Node ${host.node}`,
    `cudapool ${host.project}${host.commit === null ? '' : ` (${host.commit.slice(0, 12)})`}`,
  ];
  return parts.filter((part) => part !== '').join('; ');
}

export function documentMarkdown(document: BenchDocument): string {
  const sections = document.records.map((record) => recordMarkdown(record, document.host));
  return [`## ${document.host.simulated ? 'Simulated: ' : ''}${hostLine(document.host)}`, ...sections].join('\n\n');
}

const csvCell = (value: unknown): string => {
  const text = value === undefined || value === null ? '' : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

/** Every run, one a line, in the order they ran. */
export function documentCsv(document: BenchDocument): string {
  const metrics = [...new Set(document.records.flatMap((record) => record.metrics.map(({ name }) => name)))];
  const head = ['suite', 'case', 'order', 'variant', 'warmup', 'verified', ...metrics, 'error', 'simulated'];
  const rows = document.records.flatMap((record) =>
    record.runs.map((run) => [
      record.suite,
      record.case,
      run.order,
      run.variant,
      run.warmup,
      run.verified,
      ...metrics.map((metric) => run.values[metric]),
      run.error,
      document.host.simulated,
    ]),
  );
  return `${[head, ...rows].map((row) => row.map(csvCell).join(',')).join('\n')}\n`;
}
