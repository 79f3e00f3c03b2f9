// SPDX-License-Identifier: MIT
// Runs scenario.sh's steps with real CRIU and the patched plugin, against a scripted pool and a recording cuda-checkpoint.
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { unpack } from '../../harness/adapters/tar.ts';
import { CRIU_VERSIONS } from '../../harness/paths.ts';
import { buildSnippets, criuTree, inRoot, isRoot, skipUnless, tempDir } from '../support/index.ts';

export type Version = (typeof CRIU_VERSIONS)[number];
export const versions = CRIU_VERSIONS;

/** '4.2.1' to '421', as the variables below have it. */
const short = (version: Version): string => version.replaceAll('.', '');

/** A patched and built tree of this version: what `cudapool setup --for test` made, or CUDAPOOL_TEST_PATCHED_CRIU_421. */
export const patchedTree = (version: Version): string =>
  process.env[`CUDAPOOL_TEST_PATCHED_CRIU_${short(version)}`] ?? criuTree(version);

/** What the patch looks at in a tree, and what building the plugin needs; all of CRIU would take long to copy and compare. */
const looked = ['Makefile.versions', 'plugins'];
const builtParts = ['compel', 'criu/include', 'criu/arch', 'images', 'include', 'scripts/nmk'];

async function copyParts(from: string, to: string, parts: readonly string[]): Promise<void> {
  mkdirSync(to, { recursive: true });
  const there = parts.filter((part) => existsSync(join(from, part)));
  await exec('cp', ['-a', '--parents', ...there, to], { cwd: from, timeoutMs: 60_000 });
}

/**
 * Those parts of the released sources, of what setup fetched or of CUDAPOOL_TEST_CRIU_421; with `built` as after a build.
 * undefined: there are none.
 */
export async function pristineTree(t: Test, version: Version, built = false): Promise<string | undefined> {
  const dir = join(tempDir(t), `criu-${version}`);
  const given = process.env[`CUDAPOOL_TEST_CRIU_${short(version)}`];
  const tarball = inRoot('build', 'sources', `criu_${version}.orig.tar.xz`);
  if (given !== undefined) await copyParts(given, dir, looked);
  else if (existsSync(tarball))
    await unpack(
      tarball,
      dir,
      looked.map((part) => `criu-${version}/${part}`),
    );
  const there = existsSync(join(dir, 'Makefile.versions'));
  if (built && there) await copyParts(patchedTree(version), dir, builtParts);
  return skipUnless(t, there, `no sources of CRIU ${version}: bin/cudapool setup --for test fetches them`)
    ? dir
    : undefined;
}

export interface Outcome {
  /** What the steps printed: NAME=VALUE. */
  values: Record<string, string>;
  /** What the pool was asked and did, a line each, without the time. */
  pool: string[];
  /** How often which cuda-checkpoint was executed: 'lock 3'. */
  executed: string[];
  /** A log of CRIU: 'dump', 'restore', 'again'. */
  log(name: string): string;
}

export interface ScenarioOptions {
  version?: Version;
  /** Options as the user sets them. */
  env?: Record<string, string>;
  /** Folder before /usr/bin in PATH; default: the recording cuda-checkpoint's. */
  tools?: string;
  /** The plugin; default: the patched one. */
  libs?: string;
}

/** `if (!canRun(t)) return;`: are scenarios possible here? */
export function canRun(t: Test, version: Version = versions[0]): boolean {
  const tree = patchedTree(version);
  const there = existsSync(join(tree, 'criu', 'criu')) && existsSync(join(tree, 'plugins', 'cuda', 'cuda_plugin.so'));
  return (
    skipUnless(t, isRoot, 'CRIU needs root') &&
    skipUnless(t, there, `${tree} is not built: bin/cudapool setup --for test does that`)
  );
}

/** The folder of the scripted pool, the recording cuda-checkpoint and the application. */
export const programs = (): Promise<string> => buildSnippets('plugin');

export async function scenario(t: Test, script: string, options: ScenarioOptions = {}): Promise<Outcome> {
  const tree = patchedTree(options.version ?? versions[0]);
  const dir = tempDir(t);
  const fake = await programs();
  const { stdout, stderr, exitCode } = await exec(
    'unshare',
    ['-pf', '--mount-proc', '--kill-child', 'bash', '-c', `. ${inRoot('test', 'plugin', 'scenario.sh')}\n${script}`],
    {
      timeoutMs: 60_000,
      reject: false,
      env: {
        CRIU_CUDA_CONTEXT_POOL: undefined,
        CRIU_CUDA_PARALLEL_RESTORE: undefined,
        CRIU_CUDA_STREAMS: undefined,
        CRIU_CUDA_CHUNK_MB: undefined,
        T: dir,
        FAKE: fake,
        CRIU: join(tree, 'criu', 'criu'),
        CRIU_LIBS_DIR: options.libs ?? join(tree, 'plugins', 'cuda'),
        TOOLS: options.tools ?? join(fake, 'bin'),
        CRIU_CONFIG_FILE: '/dev/null',
        ...options.env,
      },
    },
  );
  const read = (name: string): string => (existsSync(join(dir, name)) ? readFileSync(join(dir, name), 'utf8') : '');
  const lines = (name: string): string[] =>
    read(name)
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => line.replace(/^\d+ /, ''));
  const values = Object.fromEntries(
    [...stdout.matchAll(/^(\w+)=(.*)$/gm)].map(([, name, value]) => [name, value]),
  ) as Record<string, string>;
  if (exitCode !== 0) t.comment(`the scenario ended with ${exitCode}`, stderr, values);
  return { values, pool: lines('log'), executed: lines('executed'), log: (name) => read(`${name}.log`) };
}

/** A scenario, and what must come of it. */
export interface Case {
  readonly name: string;
  readonly script: string;
  readonly options?: ScenarioOptions;
  readonly wanted: Record<string, string>;
  /** What else must hold. */
  readonly also?: (t: Test, outcome: Outcome) => void;
  /** Also on the older CRIU. */
  readonly both?: true;
}

/** A test of each, two at a time. `optionsOf`: what a case is run with. */
export function runCases<C extends Case>(
  t: Test,
  cases: readonly C[],
  optionsOf: (t: Test, each: C) => ScenarioOptions,
): void {
  t.jobs = 2;
  for (const each of cases)
    t.test(each.name, async (t) => {
      const outcome = await scenario(t, each.script, optionsOf(t, each));
      expect(t, outcome, each.wanted);
      each.also?.(t, outcome);
    });
}

/** The same with each CRIU that is supported. */
export function runCasesWithEach<C extends Case>(
  t: Test,
  cases: readonly C[],
  optionsOf: (t: Test, each: C, version: Version) => ScenarioOptions = (_, { options }) => options ?? {},
): void {
  for (const version of versions)
    t.test(`CRIU ${version}`, async (t) => {
      if (!canRun(t, version)) return;
      const due = version === versions[0] ? cases : cases.filter(({ both }) => both === true);
      runCases(t, due, (t, each) => ({ ...optionsOf(t, each, version), version }));
    });
}

/** How often that stands in a text. */
export const count = (text: string, what: string | RegExp): number => text.split(what).length - 1;

/**
 * For t.ok(): restores that must fail did within a second, by their median; on a busy machine the scenario's dump took
 * longer, too. None of them was near the 30 s after which scenario.sh kills a CRIU that hangs.
 */
export function soon({ values }: Outcome, ...names: string[]): [boolean, string] {
  const took = names.map((name) => Number(values[`${name}_ms`])).sort((a, b) => a - b);
  const [median = Number.NaN, slowest = Number.NaN] = [took[took.length >> 1], took.at(-1)];
  const limit = 1000 + 2 * Number(values.dump_ms);
  return [median < limit && slowest < 5000 + limit, `${median} ms, ${slowest} ms at most; the limit is ${limit} ms`];
}

/** Asks for values of an outcome; what differs is shown with CRIU's own words. */
export function expect(t: Test, outcome: Outcome, wanted: Record<string, string>): void {
  const found = Object.fromEntries(Object.keys(wanted).map((name) => [name, outcome.values[name]]));
  if (t.strictSame(found, wanted)) return;
  for (const name of ['before', 'dump', 'restore', 'again']) {
    const said = outcome.log(name).match(/^.*(Error|Warn|cuda_plugin).*$/gm) ?? [];
    if (said.length > 0) t.comment(`${name}.log:`, said.join('\n'));
  }
}
