// SPDX-License-Identifier: MIT
// `cudapool options`: what can be set, from the one table in wire/options.def; docs/options.md is its --markdown.
import type { Command } from 'commander';
import type { PoolOption } from './adapters/cudapoold.ts';
import { colour, print, printJson } from './output.ts';

export function registerOptions(program: Command): void {
  program
    .command('options')
    .description('what can be set by environment or configuration file, and what holds here')
    .option('--markdown', 'print docs/options.md')
    .option('--json', 'print the table as JSON')
    .action(async (options: { markdown?: boolean; json?: boolean }) => {
      const { poolOptions } = await import('./adapters/cudapoold.ts');
      const table = await poolOptions();
      if (options.json === true) printJson({ schema: 'cudapool.options/1', options: table });
      else if (options.markdown === true) print(await optionsMarkdown(table));
      else for (const option of table) printOption(option);
    });
}

/** What a value may be, for people. */
function range(option: PoolOption): string {
  if (option.type === 'BOOL') return '0 or 1';
  if (option.type === 'NUMBER') return `${option.min} to ${option.max}`;
  return `text, at most ${option.max} bytes`;
}

function printOption(option: PoolOption): void {
  const set = option.source === undefined || option.source === 'default' ? '' : ` (${option.source})`;
  print(`${colour.bold(option.environment, 'stdout')}=${option.value ?? option.default}${set}`);
  print(`    ${option.text}`);
  print(
    `    ${range(option)}; default ${option.default === '' ? 'empty' : option.default}; read by ${option.readers.join(', ')}`,
  );
}

/** docs/options.md. It depends on the table only, not on what is set on this machine. */
export async function optionsMarkdown(table: readonly PoolOption[]): Promise<string> {
  const { markdownTable } = await import('markdown-table');
  const code = (text: string): string => (text === '' ? '' : `\`${text}\``);
  const rows = table.map((option) => [
    code(option.environment),
    option.text.replaceAll('|', '\\|'),
    range(option),
    code(option.default),
    option.readers.join(', '),
  ]);
  return [
    '# Options',
    '',
    '<!-- Made from wire/options.def by `bin/cudapool options --markdown`; a test compares. -->',
    '',
    'The environment comes first, then the configuration file, then the default. The file is `/etc/cudapool/cudapool.conf`,',
    'or what `CUDAPOOL_CONFIG` names: lines of `NAME=VALUE`; `#` starts a comment. It must belong to root, or to who uses it,',
    'and be writable by nobody else. The shim reads no file: it goes by the environment of its application.',
    '',
    'podman does not pass its environment on to CRIU on restore in every version: `cudapool restore` takes care of that, and',
    'for a plain `podman container restore` the file does.',
    '',
    markdownTable([['Name', 'What it does', 'Values', 'Default', 'Read by'], ...rows]),
  ].join('\n');
}
