// SPDX-License-Identifier: MIT
// `cudapool check`: one line per requirement, what was found, and how to fix it.
import type { Command } from 'commander';
import { existingDir } from './arguments.ts';
import type { CheckContext, Finding, Requirement } from './checks/requirement.ts';
import { asCudapoolError, EXIT } from './errors.ts';
import { colour, print, printJson } from './output.ts';
import { CRIU_DEFAULT, criuTree } from './paths.ts';

export type CheckLine = Omit<Requirement, 'look' | 'gpuOnly'> & Finding;

export function registerCheck(program: Command): void {
  program
    .command('check')
    .description('whether this machine is fit, one line per requirement, each with its fix')
    .option('--criu-src <dir>', 'the CRIU tree to look at (default: the one that `cudapool build` makes)', existingDir)
    .option('--software', 'for the software driver: without what only a GPU needs')
    .option('--json', 'print it as JSON')
    .action(async (flags: { criuSrc?: string; software?: boolean; json?: boolean }) => {
      const lines = await check({
        criuTree: flags.criuSrc ?? criuTree(CRIU_DEFAULT),
        software: flags.software === true,
      });
      const fit = lines.every(({ status }) => status !== 'bad');
      if (flags.json === true) printJson({ schema: 'cudapool.check/1', fit, checks: lines });
      else printLines(lines);
      if (!fit) process.exitCode = EXIT.UNFIT;
    });
}

/** All requirements, looked at together; none of them throws. */
export async function check(context: CheckContext): Promise<CheckLine[]> {
  const { machine } = await import('./checks/machine.ts');
  const { gpu } = await import('./checks/gpu.ts');
  const { criu } = await import('./checks/criu.ts');
  const { containers } = await import('./checks/containers.ts');
  const { cudapool } = await import('./checks/cudapool.ts');
  return Promise.all(
    [...machine, ...gpu, ...criu, ...containers, ...cudapool]
      .filter(({ gpuOnly }) => gpuOnly !== true || !context.software)
      .map(async (requirement) => {
        const { id, title, group } = requirement;
        return { id, title, group, ...(await found(requirement, context)) };
      }),
  );
}

async function found(requirement: Requirement, context: CheckContext): Promise<Finding> {
  try {
    return await requirement.look(context);
  } catch (thrown) {
    const error = asCudapoolError(thrown);
    if (error.exit === EXIT.INTERRUPTED) throw error;
    return { status: 'bad', found: error.message, fix: error.hint ?? 'see the message' };
  }
}

const marks = {
  ok: colour.green('ok  ', 'stdout'),
  note: colour.yellow('note', 'stdout'),
  bad: colour.red('BAD ', 'stdout'),
  skip: colour.dim('-   ', 'stdout'),
} as const;

function printLines(lines: readonly CheckLine[]): void {
  let group = '';
  for (const line of lines) {
    if (line.group !== group) print(colour.bold(line.group, 'stdout'));
    group = line.group;
    print(`  ${marks[line.status]}  ${line.title}: ${line.found}`);
    if (line.fix !== undefined) print(`        fix: ${line.fix}`);
  }
  const bad = lines.filter(({ status }) => status === 'bad').length;
  print(
    bad === 0 ? 'This machine is fit.' : `This machine is not fit: ${bad} of ${lines.length} requirements are not met.`,
  );
}
