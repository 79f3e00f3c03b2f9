// SPDX-License-Identifier: MIT
// `cudapool patch apply | verify | diff | rollback`: the edits of CRIU's CUDA plugin.
import type { Command } from 'commander';
import { existingDir } from '../arguments.ts';
import { CudapoolError, EXIT } from '../errors.ts';
import { colour, print, printJson, say } from '../output.ts';
import type { ApplyOptions, ApplyResult } from './apply.ts';
import type { Check } from './verify.ts';

interface Options {
  criuSrc: string;
  force?: boolean;
  json?: boolean;
  dryRun?: boolean;
}

export function registerPatch(program: Command): void {
  const patch = program.command('patch').description("wire the pool into CRIU's CUDA plugin, and take it out again");
  const sub = (name: string, description: string): Command =>
    patch
      .command(name)
      .description(description)
      .requiredOption('--criu-src <dir>', 'the CRIU source tree (4.1.1, 4.2.x)', existingDir)
      .option('--json', 'print the result as JSON');

  sub('apply', 'back up and edit plugins/cuda, add our source; all of it or nothing')
    .option('--force', 'also where the files are not those of the release, if every edit finds its place')
    .option('--dry-run', 'print what would be written, write nothing')
    .action(async ({ criuSrc, force, json }: Options) => {
      const result = await applyPatch(criuSrc, { force: force === true });
      if (result.dry) return;
      if (json === true) printJson({ schema: 'cudapool.patch-apply/1', ...result });
      else {
        for (const { path, lines_before, lines_after } of result.edited)
          print(`edited ${path}: ${lines_before} to ${lines_after} lines`);
        for (const path of result.added) print(`added ${path}`);
        for (const path of result.backups) print(`backup ${path}`);
        say(`next: cudapool build --criu-src ${criuSrc}`);
      }
    });

  sub('verify', "the guide's steps 3 and 5: the source, and after a build the plugin's symbols").action(
    async ({ criuSrc, json }: Options) => {
      const { verifyPatch } = await import('./verify.ts');
      const result = await verifyPatch(criuSrc);
      if (json === true) printJson({ schema: 'cudapool.patch-verify/1', ...result });
      else for (const check of result.checks) printCheck(check);
      if (!result.ok) process.exitCode = EXIT.FAILED;
    },
  );

  sub('diff', 'a unified diff of what apply would do, or has done').action(async ({ criuSrc, json }: Options) => {
    const { diffPatch } = await import('./diff.ts');
    const result = await diffPatch(criuSrc);
    if (json === true) printJson({ schema: 'cudapool.patch-diff/1', ...result });
    else process.stdout.write(result.diff);
  });

  sub('rollback', 'give back the original to the byte, and remove what apply added and cudapool built')
    .option('--force', 'also where files were edited since: those edits are lost')
    .option('--dry-run', 'print what would be done, do nothing')
    .action(async ({ criuSrc, force, json }: Options) => {
      const { rollbackPatch } = await import('./rollback.ts');
      const result = await rollbackPatch(criuSrc, { force: force === true });
      if (result.dry) return;
      if (json === true) printJson({ schema: 'cudapool.patch-rollback/1', ...result });
      else {
        for (const path of result.restored) print(`restored ${path}`);
        for (const path of result.removed) print(`removed ${path}`);
        if (result.build_files > 0) print(`removed ${result.build_files} files of the build`);
      }
    });
}

function printCheck({ name, command, expected, found, status, why }: Check): void {
  const mark = {
    ok: colour.green('ok', 'stdout'),
    failed: colour.red('FAILED', 'stdout'),
    note: 'note',
    absent: 'absent',
  }[status];
  print(`${mark}  ${name}: ${found} (expected: ${expected})`);
  if (status !== 'ok' && command !== undefined) print(`      $ ${command}`);
  if (why !== undefined) print(`      ${why}`);
}

/** Patches the tree in `dir`; throws a CudapoolError, and nothing is changed, where that cannot be. */
export async function applyPatch(dir: string, options: ApplyOptions = {}): Promise<ApplyResult> {
  const module = await import('./apply.ts');
  return module.applyPatch(dir, options);
}

/** For what only makes sense in a patched tree. */
export async function requirePatched(dir: string): Promise<void> {
  const { openTree, changedSince } = await import('./tree.ts');
  const tree = openTree(dir);
  const { manifest } = tree;
  const gone =
    manifest === undefined ? [] : changedSince({ ...tree, manifest }).filter(({ found }) => found !== 'edited');
  if (manifest !== undefined && gone.length === 0) return;
  throw new CudapoolError(
    'ERR_CUDAPOOL_PATCH_NOT_APPLIED',
    `${dir} is not patched${gone.length > 0 ? ' completely' : ''}`,
    {
      lines: gone.map(({ path, found }) => `${path}: ${found}`),
      hint: `run 'cudapool patch ${manifest === undefined ? 'apply' : 'rollback'} --criu-src ${dir}' first`,
    },
  );
}
