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

/** A plain text table with aligned columns, for terminals. `right`: the columns whose cells are numbers. */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  right: readonly number[] = [],
): string {
  const all = head.length > 0 ? [head, ...rows] : rows;
  const widths: number[] = [];
  for (const row of all) {
    row.forEach((cell, i) => {
      widths[i] = Math.max(widths[i] ?? 0, cell.length);
    });
  }
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (right.includes(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd();
  return all.map(line).join('\n');
}
