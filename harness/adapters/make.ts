// SPDX-License-Identifier: MIT
// make(1), directly and by way of node-gyp.
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { CudapoolError } from '../errors.ts';
import { inRoot } from '../paths.ts';
import { type ExecOptions, type ExecResult, exec, isDryRun, lastLines } from './exec.ts';

export interface MakeOptions {
  dir: string;
  targets?: readonly string[];
  vars?: Record<string, string>;
  jobs?: number | undefined;
  timeoutMs: number;
  onLine?: ExecOptions['onLine'];
}

/** make -C DIR, with as many jobs as there are processors. */
export function make(options: MakeOptions): Promise<ExecResult> {
  const vars = Object.entries(options.vars ?? {}).map(([name, value]) => `${name}=${value}`);
  const jobs = options.jobs ?? availableParallelism();
  return exec('make', ['-C', options.dir, `-j${jobs}`, ...vars, ...(options.targets ?? [])], {
    timeoutMs: options.timeoutMs,
    // A make above this one (npm test run from a Makefile) must not pass its flags on.
    env: { MAKEFLAGS: undefined, MAKELEVEL: undefined, LC_ALL: 'C' },
    package: 'make',
    ...(options.onLine !== undefined && { onLine: options.onLine }),
  });
}

/** Where the headers of the running node are: node-gyp then downloads nothing. */
function nodeHeaders(): string[] {
  const prefix = dirname(dirname(process.execPath));
  return existsSync(join(prefix, 'include', 'node', 'common.gypi')) ? ['--nodedir', prefix] : [];
}

/** Runs the actions of DIR/binding.gyp, each time. */
export async function nodeGyp(options: {
  dir: string;
  timeoutMs: number;
  onLine?: ExecOptions['onLine'];
}): Promise<ExecResult> {
  const { dir } = options;
  const script = inRoot('node_modules', 'node-gyp', 'bin', 'node-gyp.js');
  const makefile = join(dir, 'build', 'Makefile');
  // It names places relative to where the tree was then: a tree that was moved is configured anew.
  const configured = existsSync(makefile) && readFileSync(makefile, 'utf8').includes(`"-Dmodule_root_dir=${dir}"`);
  // Without its stamps of the last run it asks each room's make, which knows what is up to date.
  if (!isDryRun()) rmSync(join(dir, 'build', 'Release'), { recursive: true, force: true });
  const args = [script, configured ? 'build' : 'rebuild', '-C', dir, '--jobs', 'max', ...nodeHeaders()];
  const ran = await exec(process.execPath, args, {
    timeoutMs: options.timeoutMs,
    env: { MAKEFLAGS: undefined, MAKELEVEL: undefined, LC_ALL: 'C', npm_config_nodedir: undefined },
    reject: false,
    ...(options.onLine !== undefined && { onLine: options.onLine }),
  });
  if (ran.exitCode === 0) return ran;
  const said = ran.stderr.split('\n').filter((line) => !line.startsWith('gyp '));
  throw new CudapoolError('ERR_CUDAPOOL_BUILD', `building ${dir}/binding.gyp failed`, {
    details: { stdout: ran.stdout, stderr: ran.stderr, exitCode: ran.exitCode },
    lines: lastLines(said.length > 1 ? said.join('\n') : ran.stderr),
    hint: /EACCES|Permission denied/.test(ran.stderr)
      ? 'run it again with sudo, or as the owner of that folder'
      : `to see all of it: ${ran.command}`,
  });
}
