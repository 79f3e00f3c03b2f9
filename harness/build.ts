// SPDX-License-Identifier: MIT
// `cudapool build`: CRIU with the patched CUDA plugin, in the user's tree or in one that is fetched.
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join, relative } from 'node:path';
import { type Command, Option } from 'commander';
import { existingDir, wholeNumber } from './arguments.ts';
import { usageError } from './errors.ts';
import { print, printJson, progress } from './output.ts';
import { CRIU_DEFAULT, CRIU_VERSIONS, criuTree, inRoot, root } from './paths.ts';

const BUILD_MS = 1_800_000;
/** Debian's suite that carries each version's sources. */
const suites: Readonly<Record<string, string>> = { '4.2.1': 'sid', '4.1.1': 'trixie' };

export interface BuildResult {
  tree: string;
  version: string;
  criu: string;
  plugin: string;
  /** Upstream's plugin, built against the same headers, for baselines; absent in the user's own tree. */
  stock_plugin?: string;
  /** false: everything was up to date. */
  built: boolean;
}

interface BuildFlags {
  criuSrc?: string;
  criuVersion?: string;
  jobs?: number;
  dryRun?: boolean;
  json?: boolean;
}

export function registerBuild(program: Command): void {
  program
    .command('build')
    .description("build CRIU with the patched CUDA plugin, in the user's tree or in one that is fetched")
    .option('--criu-src <dir>', 'a CRIU tree that `cudapool patch apply` has patched', existingDir)
    .addOption(new Option('--criu-version <version>', 'fetch this version').choices(CRIU_VERSIONS))
    .option('--jobs <n>', 'jobs at once (default: one per processor)', wholeNumber(1, 512))
    .option('--dry-run', 'print the commands, run none')
    .option('--json', 'print the result as JSON')
    .action(async (options: BuildFlags) => {
      if (options.criuSrc !== undefined && options.criuVersion !== undefined) {
        throw usageError('--criu-src and --criu-version exclude each other', 'a tree has the version that it has');
      }
      const result =
        options.criuSrc === undefined
          ? await buildFetched(options.criuVersion ?? CRIU_DEFAULT, options)
          : await buildInTree(options.criuSrc, options);
      if (options.dryRun === true) return;
      if (options.json === true) printJson({ schema: 'cudapool.build/1', ...result });
      else for (const file of [result.criu, result.plugin]) print(file);
    });
}

/** make, with the file that it works on shown. */
async function makeCriu(
  dir: string,
  what: string,
  targets: readonly string[],
  jobs: number | undefined,
): Promise<void> {
  const { make } = await import('./adapters/make.ts');
  const { isDryRun } = await import('./adapters/exec.ts');
  if (isDryRun()) {
    await make({ dir, targets, jobs, timeoutMs: BUILD_MS });
    return;
  }
  const shown = await progress(what);
  try {
    let lines = 0;
    await make({
      dir,
      targets,
      jobs,
      timeoutMs: BUILD_MS,
      onLine: (line) => {
        if (/^ {2}(CC|GEN|LINK|PBCC|AR|LD) /.test(line)) shown.update(`${what}: ${++lines} files, ${line.trim()}`);
      },
    });
  } catch (thrown) {
    shown.fail(`${what}: failed`);
    throw thrown;
  }
  shown.done(`${what}: done`);
}

/** Builds in the user's own tree, and notes what that adds so that rollback can take it away. */
export async function buildInTree(dir: string, options: { jobs?: number | undefined } = {}): Promise<BuildResult> {
  const { criuTreeAt } = await import('./adapters/criu.ts');
  const { isDryRun } = await import('./adapters/exec.ts');
  const { requirePatched } = await import('./patch/index.ts');
  const { recordBuild } = await import('./build-record.ts');
  const tree = criuTreeAt(dir);
  await requirePatched(dir);
  const build = (): Promise<void> =>
    makeCriu(dir, `building CRIU ${tree.version} in ${dir}`, ['criu', 'cuda_plugin'], options.jobs);
  if (isDryRun()) await build();
  else await recordBuild(dir, build);
  return { tree: dir, version: tree.version, criu: tree.criu, plugin: tree.plugin, built: true };
}

/** What the patched plugin is made of: when this changes, it is patched and built anew. */
function patchInputs(): string {
  const hash = createHash('sha256');
  for (const room of ['criu-plugin-patch', 'wire', join('harness', 'patch')]) {
    const files = readdirSync(inRoot(room), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && !/\.(o|d)$/.test(entry.name))
      .map((entry) => join(entry.parentPath, entry.name))
      .sort();
    for (const file of files)
      hash
        .update(`${relative(root, file)}\0`)
        .update(readFileSync(file))
        .update('\0');
  }
  return hash.digest('hex');
}

const readOr = (path: string): string => (existsSync(path) ? readFileSync(path, 'utf8') : '');

/** Fetches, patches and builds this version below build/, as far as that is due. */
export async function buildFetched(version: string, options: { jobs?: number | undefined } = {}): Promise<BuildResult> {
  const tree = criuTree(version);
  const plugin = join(tree, 'plugins', 'cuda', 'cuda_plugin.so');
  const stock = join(tree, 'stock', 'cuda_plugin.so');
  const criu = join(tree, 'criu', 'criu');
  const stamp = join(tree, '.cudapool-patched');
  const inputs = patchInputs();
  const result = { tree, version, criu, plugin, stock_plugin: stock };
  const upToDate = (): boolean => [criu, plugin, stock].every((file) => existsSync(file)) && readOr(stamp) === inputs;
  if (upToDate()) return { ...result, built: false };

  const { withLock } = await import('./adapters/flock.ts');
  const { fetchSource } = await import('./adapters/apt.ts');
  const { unpack } = await import('./adapters/tar.ts');
  const { isDryRun, recordDry } = await import('./adapters/exec.ts');
  return withLock(inRoot('build', `.criu-${version}.lock`), async () => {
    if (upToDate()) return { ...result, built: false };
    const sources = inRoot('build', 'sources');
    if (!isDryRun()) mkdirSync(sources, { recursive: true });
    const tarball = await fetchSource({ source: 'criu', version, suite: suites[version] ?? 'sid', dir: sources });
    if (!existsSync(tree)) {
      const fresh = `${tree}.new`;
      if (!isDryRun()) rmSync(fresh, { recursive: true, force: true });
      await unpack(tarball, fresh);
      if (!isDryRun()) renameSync(fresh, tree);
    }
    if (!existsSync(stock) || !existsSync(criu)) {
      await pristinePlugin();
      await makeCriu(tree, `building CRIU ${version} (some minutes)`, ['criu', 'cuda_plugin'], options.jobs);
      if (!isDryRun()) {
        mkdirSync(join(tree, 'stock'), { recursive: true });
        copyFileSync(plugin, `${stock}.new`);
        renameSync(`${stock}.new`, stock);
      }
    }
    if (!isDryRun()) rmSync(stamp, { force: true });
    await pristinePlugin();
    if (isDryRun()) recordDry(`cudapool patch apply --criu-src ${tree}`);
    else {
      const { applyPatch } = await import('./patch/index.ts');
      await applyPatch(tree);
    }
    await makeCriu(tree, `building the patched plugin of CRIU ${version}`, ['cuda_plugin'], options.jobs);
    if (!isDryRun()) writeFileSync(stamp, inputs);
    return { ...result, built: true };

    /** The patch touches this folder only; an earlier one's files go with it. tar keeps the dates that make looks at. */
    async function pristinePlugin(): Promise<void> {
      if (!isDryRun()) rmSync(join(tree, 'plugins', 'cuda'), { recursive: true, force: true });
      const top = `criu-${version}`;
      await unpack(tarball, tree, [`${top}/plugins/cuda`]);
    }
  });
}
