// SPDX-License-Identifier: MIT
// `cudapool setup`: everything that the other commands need, once; says nothing is due when nothing is.
import { type Command, Option } from 'commander';
import { wholeNumber } from '../arguments.ts';
import { printJson, say } from '../output.ts';
import { CRIU_DEFAULT, CRIU_VERSIONS } from '../paths.ts';
import type { Purpose } from './packages.ts';

interface SetupOptions {
  for: Purpose;
  packages: boolean;
  jobs?: number;
  json?: boolean;
  dryRun?: boolean;
}

export function registerSetup(program: Command): void {
  program
    .command('setup')
    .description('install and build what is missing: system packages, the C parts, CRIU with the patched plugin')
    .addOption(
      new Option('--for <purpose>', 'use: shim and pool; demo: CRIU, too; test: every CRIU that is tested')
        .choices(['use', 'demo', 'test'])
        .default('demo'),
    )
    .option('--no-packages', 'leave system packages alone')
    .option('--jobs <n>', 'jobs at once (default: one per processor)', wholeNumber(1, 512))
    .option('--dry-run', 'print the commands, run none')
    .option('--json', 'print what was done as JSON')
    .action(async (options: SetupOptions) => {
      const done = await setUp(options);
      if (options.dryRun !== true && options.json === true) printJson({ schema: 'cudapool.setup/1', ...done });
    });
}

export interface SetupResult {
  packages: string[];
  native: boolean;
  criu: string[];
}

/** Does what is due, and returns it. */
export async function setUp(options: { for: Purpose; packages: boolean; jobs?: number }): Promise<SetupResult> {
  const { ensurePackages } = await import('./packages.ts');
  const { ensureNative } = await import('./native.ts');
  const packages = options.packages ? await ensurePackages(options.for) : [];
  const native = await ensureNative();
  const criu: string[] = [];
  if (options.for !== 'use') {
    const { buildFetched } = await import('../build.ts');
    for (const version of options.for === 'test' ? CRIU_VERSIONS : [CRIU_DEFAULT]) {
      const result = await buildFetched(version, { jobs: options.jobs });
      if (result.built) criu.push(version);
    }
  }
  if (packages.length + criu.length === 0 && !native) say('cudapool: everything is set up');
  return { packages, native, criu };
}
