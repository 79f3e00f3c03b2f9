// SPDX-License-Identifier: MIT
// `cudapool bench` and `cudapool report`.
import { type Command, InvalidArgumentError, Option } from 'commander';
import { wholeNumber } from '../arguments.ts';
import { EXIT, usageError } from '../errors.ts';
import { print, say } from '../output.ts';
import type { BenchDocument } from './record.ts';
import type { Suite } from './suite.ts';

interface BenchFlags {
  suite?: string[];
  driver?: 'gpu' | 'softcuda';
  costs?: string;
  criu?: string;
  memory?: number;
  gib?: number[];
  only?: string[];
  ways?: Record<string, number | undefined>;
  seconds?: number;
  runs?: number;
  warmup?: number;
  prepare?: string;
  budget?: number;
  out?: string;
  json?: string | true;
  exportJson?: string;
  exportMarkdown?: string;
  exportCsv?: string;
  dryRun?: boolean;
}

interface ReportFlags {
  baseline?: string;
  maxRegression: number;
  json?: boolean;
}

async function suites(): Promise<readonly Suite[]> {
  const { allSuites } = await import('./suites/index.ts');
  return allSuites;
}

async function chooseSuites(asked: readonly string[]): Promise<readonly Suite[]> {
  const all = await suites();
  if (asked.includes('all')) return all;
  return (asked.length === 0 ? ['restore'] : [...new Set(asked)]).map((name) => {
    const suite = all.find((each) => each.name === name);
    if (suite !== undefined) return suite;
    const known = all.map((each) => `  ${each.name.padEnd(12)} ${each.summary}`).join('\n');
    throw usageError(`there is no suite named ${name}`, `the suites are\n${known}\nand 'all'`);
  });
}

/** 1 if a run failed or answered wrongly: figures beside such runs prove nothing. */
function exitCodeOf(document: BenchDocument): number {
  const bad = document.records.some((record) => record.runs.some((run) => run.error !== undefined || !run.verified));
  return bad ? EXIT.FAILED : EXIT.OK;
}

/** What would run, in which order, and which of it fits into the budget. */
async function plan(chosen: readonly Suite[], flags: BenchFlags): Promise<void> {
  const { recordDry } = await import('../adapters/exec.ts');
  const { fitting, secondsOf } = await import('./suite.ts');
  const seconds = (suite: Suite): number => secondsOf(suite, flags);
  const fit = fitting(chosen, seconds, flags.budget ?? Number.POSITIVE_INFINITY);
  for (const suite of chosen) {
    const when = fit.has(suite) ? `about ${seconds(suite)} s` : `left out, it takes about ${seconds(suite)} s`;
    recordDry(`${suite.name}: ${when}: ${suite.summary}`);
  }
  const sum = [...fit].reduce((total, suite) => total + seconds(suite), 0);
  const budget = flags.budget === undefined ? '' : `, of ${flags.budget} s`;
  say(`in all about ${sum} s on a GPU${budget}`);
}

async function bench(asked: readonly string[], flags: BenchFlags): Promise<void> {
  const chosen = await chooseSuites([...asked, ...(flags.suite ?? [])]);
  if (flags.ways !== undefined && !chosen.some(({ ways }) => ways === true))
    throw usageError('--ways: none of these suites compares ways back', 'llama, sizes and reserve do');
  if (flags.dryRun === true) return plan(chosen, flags);
  const { H200_COSTS } = await import('./bed.ts');
  const { guideText, isGuideRecord } = await import('./guide.ts');
  const { runSession } = await import('./session.ts');
  const { documentCsv, documentMarkdown, recordMarkdown, verdictText } = await import('./export.ts');
  const { formatDocument, writeWhole } = await import('./record.ts');
  const file = flags.exportJson ?? (typeof flags.json === 'string' ? flags.json : undefined);
  const { document, failed } = await runSession({
    suites: chosen,
    driver: flags.driver,
    costs: flags.costs === 'none' ? undefined : (flags.costs ?? H200_COSTS),
    criu: flags.criu,
    runs: flags.runs,
    warmup: flags.warmup,
    memoryMib: flags.memory,
    gib: flags.gib,
    only: flags.only,
    ways: flags.ways,
    seconds: flags.seconds,
    prepare: flags.prepare,
    budgetS: flags.budget,
    out: flags.out,
    file,
  });
  const { host, records } = document;
  if (flags.exportMarkdown !== undefined) await writeWhole(flags.exportMarkdown, `${documentMarkdown(document)}\n`);
  if (flags.exportCsv !== undefined) await writeWhole(flags.exportCsv, documentCsv(document));
  if (flags.json === true) print(formatDocument(host, records).trimEnd());
  else {
    for (const record of records) {
      const isGuide = isGuideRecord(record);
      if (isGuide) print(`${guideText(record, host.simulated)}\n`);
      if (!isGuide || records.length > 1) print(`${recordMarkdown(record, host)}\n`);
    }
  }
  for (const record of records) {
    for (const verdict of record.verdicts) {
      if (!verdict.met && !host.simulated) say(`${verdict.answer ?? 'target missed'}: ${verdictText(verdict)}`);
    }
  }
  process.exitCode = failed.length > 0 ? EXIT.FAILED : exitCodeOf(document);
  if (process.exitCode !== EXIT.OK) say('some runs failed or were not answered rightly; the record says which');
}

async function report(files: readonly string[], flags: ReportFlags): Promise<void> {
  const { readDocument } = await import('./record.ts');
  const { documentMarkdown } = await import('./export.ts');
  const documents = await Promise.all(files.map(readDocument));
  if (flags.baseline === undefined) {
    if (flags.json === true) print(JSON.stringify(documents));
    else print(documents.map(documentMarkdown).join('\n\n'));
    return;
  }
  const { compareDocuments } = await import('./compare.ts');
  const { formatNumber } = await import('./table.ts');
  const before = await readDocument(flags.baseline);
  const changes = documents.flatMap((after) => compareDocuments(before, after, flags.maxRegression));
  if (flags.json === true) print(JSON.stringify({ changes }));
  else {
    for (const { where, before: old, after, unit, percent, regressed } of changes) {
      const sign = percent < 0 ? '' : '+';
      print(
        `${regressed ? 'REGRESSED' : 'ok'}: ${where}: ${formatNumber(old)} → ${formatNumber(after)} ${unit} (${sign}${percent.toFixed(1)} %)`,
      );
    }
  }
  if (changes.some(({ regressed }) => regressed)) {
    say(`slower than ${flags.baseline} by more than ${flags.maxRegression} %`);
    process.exitCode = EXIT.REGRESSION;
  }
}

function percent(text: string): number {
  const value = /^\d{1,4}(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isNaN(value)) throw new InvalidArgumentError('a percentage such as 10');
  return value;
}

function gibList(text: string): number[] {
  const list = text.split(',').map(Number);
  if (list.every((gib) => gib > 0 && gib <= 1024)) return list;
  throw new InvalidArgumentError('sizes in GiB such as 1,8,32');
}

/** 'hot-move=5,staged=3,stock' */
function wayList(text: string): Record<string, number | undefined> {
  const entries = text.split(',').map((each): [string, number | undefined] => {
    const [, name = '', runs] = /^(stock|hot-move|hot-copy|hot|staged)(?:=([1-9]\d{0,3}))?$/.exec(each) ?? [];
    if (name === '')
      throw new InvalidArgumentError(
        'of stock, hot-move, hot-copy and staged, each with its number of runs if need be, as hot-move=5,stock',
      );
    return [name === 'hot' ? 'hot-move' : name, runs === undefined ? undefined : Number(runs)];
  });
  return Object.fromEntries(entries);
}

const several = (value: string, before: string[] = []): string[] => [...before, ...value.split(',')];

export function registerBench(program: Command): void {
  program
    .command('bench')
    .argument('[suite...]', "which suites, or 'all' (default: restore)")
    .description('measure restores without and with the pool, alternating, each verified by asking the application')
    .addOption(new Option('--suite <name>', 'as the argument').argParser(several))
    .option('--runs <n>', 'runs of each variant', wholeNumber(1, 10_000))
    .option(
      '--warmup <n>',
      "runs of each variant before those that count (default: the suite's own)",
      wholeNumber(0, 1000),
    )
    .option('--prepare <command>', 'shell command before each run, not timed; CUDAPOOL_BENCH_VARIANT names the variant')
    .option('--memory <mib>', "GPU memory of the workload (default: the suite's own)", wholeNumber(0, 1 << 20))
    .option(
      '--only <names>',
      'programs of frameworks, ways of load, or parts of steady, separated by commas',
      (text: string) => text.split(','),
    )
    .option('--gib <list>', 'sizes for sizes and load, GiB, separated by commas, as 1,8,32', gibList)
    .option(
      '--ways <list>',
      'for llama, sizes and reserve: of stock, hot-move, hot-copy, staged; with a number of runs each, as hot-move=5,stock=1',
      wayList,
    )
    .option('--seconds <n>', 'how long steady measures (default: 90)', wholeNumber(1, 3600))
    .option(
      '--budget <seconds>',
      'time for everything: no suite is begun that does not fit any more, and runs are left out of one that takes too long',
      wholeNumber(1, 86_400),
    )
    .addOption(new Option('--driver <driver>', 'default: the GPU where there is one').choices(['gpu', 'softcuda']))
    .option('--costs <file>', "what the software driver spends; 'none': nothing (default: measured on the H200)")
    .option('--criu <dir>', 'built CRIU tree (default: what cudapool build made)')
    .option('--out <dir>', 'write each suite there, after every run')
    .option('--json [file]', 'write the record as JSON: to stdout, or after every run to a file')
    .option('--export-json <file>', 'as --json FILE')
    .option('--export-markdown <file>', 'write the results as markdown')
    .option('--export-csv <file>', 'write every run as CSV')
    .option('--dry-run', 'say which suites would run, how long each takes, and what fits into the budget')
    .addHelpText(
      'after',
      `\nCUDAPOOL_SCRATCH names a folder for the bench's own files, CRIU's images and the cold image among them: on a disk\nthat CRIU and podman can use (default: the system's folder for temporary files). It is empty again afterwards.`,
    )
    .action(bench);
}

export function registerReport(program: Command): void {
  program
    .command('report')
    .argument('<file...>', 'what `cudapool bench --json FILE` or --out wrote')
    .description('render benchmark records as markdown, or compare them with a baseline')
    .option('--baseline <file>', 'an earlier record; exit code 4 if a median is larger beyond its limit')
    .option('--max-regression <percent>', 'how much larger it may be', percent, 10)
    .option('--json', 'print JSON')
    .action(report);
}
