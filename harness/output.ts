// SPDX-License-Identifier: MIT
// What people and programs read: data on stdout, talk on stderr.
import { type CudapoolError, errorToJson } from './errors.ts';

/** Talk on stderr is coloured only for a terminal, and never with NO_COLOR. */
const colourful = process.stderr.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== 'dumb';
const paint =
  (code: number) =>
  (text: string, stream: 'stdout' | 'stderr' = 'stderr'): string => {
    const on = stream === 'stderr' ? colourful : process.stdout.isTTY === true && !process.env.NO_COLOR;
    return on ? `\u001b[${code}m${text}\u001b[0m` : text;
  };
export const colour = { red: paint(31), green: paint(32), yellow: paint(33), bold: paint(1), dim: paint(2) } as const;

// Whoever read our output may stop (`cudapool check | head -1`): what was begun is finished all the same.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });
}

/** Talk: one line on stderr. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** Something that the user should know and that does not stop the command. */
export function warn(line: string, hint?: string): void {
  say(`${colour.yellow('warning:')} ${line}`);
  if (hint !== undefined) say(`${colour.dim('hint:')} ${hint}`);
}

/** Data: a line on stdout. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Data: one JSON document on stdout. BigInts become numbers where that is exact, else strings. */
export function printJson(value: unknown): void {
  print(toJson(value));
}

export function toJson(value: unknown): string {
  return JSON.stringify(
    value,
    (_key, item: unknown) => {
      if (typeof item !== 'bigint') return item;
      return Number.isSafeInteger(Number(item)) ? Number(item) : item.toString();
    },
    2,
  );
}

/** An error as people read it (stderr), or as programs do (stdout) when the command was asked for JSON. */
export function printError(error: CudapoolError, json: boolean): void {
  if (json) printJson({ error: errorToJson(error) });
  say(`${colour.red('error:')} ${error.message} ${colour.dim(`[${error.code}]`)}`);
  for (const line of error.lines) say(`  ${line}`);
  if (error.hint !== undefined) say(`${colour.bold('hint:')} ${error.hint}`);
  if (process.env.CUDAPOOL_DEBUG === '1') {
    for (let at: unknown = error; at instanceof Error; at = at.cause) say(at.stack ?? at.message);
  }
}

export interface Progress {
  /** Replaces the text that is shown (a terminal), or stays silent (a file). */
  update(text: string): void;
  /** Ends it with a line that says what was done. */
  done(text: string): void;
  fail(text: string): void;
}

/** Says that something that takes seconds goes on: a spinner on a terminal, plain lines elsewhere. */
export async function progress(text: string): Promise<Progress> {
  if (process.stderr.isTTY !== true || process.env.CI) {
    say(`${text} …`);
    return {
      update: () => {},
      done: say,
      fail: say,
    };
  }
  const { default: spinner } = await import('yocto-spinner');
  const shown = spinner({ text, stream: process.stderr }).start();
  return {
    update: (next) => {
      shown.text = next;
    },
    done: (end) => {
      shown.success(end);
    },
    fail: (end) => {
      shown.error(end);
    },
  };
}

/** Bytes for people: '6.55 GiB', '12.0 MiB', '48.0 KiB', '32 B'. */
export function bytes(count: number): string {
  if (count >= 2 ** 30) return `${(count / 2 ** 30).toFixed(2)} GiB`;
  if (count >= 2 ** 20) return `${(count / 2 ** 20).toFixed(1)} MiB`;
  return count >= 1024 ? `${(count / 1024).toFixed(1)} KiB` : `${count} B`;
}

/** Seconds for people: '90 s', '12 min', '5 h', '3 d'. */
export function age(seconds: number): string {
  const units = [
    { above: 172_800, unit: 'd', seconds: 86_400 },
    { above: 7200, unit: 'h', seconds: 3600 },
    { above: 120, unit: 'min', seconds: 60 },
  ];
  const found = units.find(({ above }) => seconds >= above) ?? { unit: 's', seconds: 1 };
  return `${Math.round(Math.max(0, seconds) / found.seconds)} ${found.unit}`;
}

/** CUDA's version for people: 13000 is '13.0'. */
export const cudaVersion = (number: number): string =>
  `${Math.floor(number / 1000)}.${Math.floor((number % 1000) / 10)}`;

/** '1 image', '2 images'. */
export const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? '' : 's'}`;

const MIN_SHRUNK = 8;

export interface TableOptions {
  /** The columns whose cells are numbers. */
  readonly right?: readonly number[];
  /** The column whose cells are cut where a line would be wider than this. */
  readonly shrink?: { readonly column: number; readonly width: number | undefined };
}

/** A plain text table with aligned columns. */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  { right = [], shrink }: TableOptions = {},
): string {
  let all = head.length > 0 ? [head, ...rows] : rows;
  const widths: number[] = [];
  for (const row of all) {
    row.forEach((cell, i) => {
      widths[i] = Math.max(widths[i] ?? 0, cell.length);
    });
  }
  if (shrink?.width !== undefined) {
    const { column } = shrink;
    const widest = widths[column] ?? 0;
    const over = widths.reduce((sum, width) => sum + width + 2, -2) - shrink.width;
    const most = Math.min(widest, Math.max(MIN_SHRUNK, widest - Math.max(0, over)));
    widths[column] = most;
    all = all.map((row) => row.map((cell, i) => (i === column ? cut(cell, most) : cell)));
  }
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (right.includes(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd();
  return all.map(line).join('\n');
}

const cut = (text: string, most: number): string => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
