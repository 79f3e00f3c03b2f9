// SPDX-License-Identifier: MIT
// `cudapool bundle`: everything that a machine without registries needs, as one archive and a script that unpacks and runs it.
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join, relative, resolve } from 'node:path';
import type { Command } from 'commander';
import { isDryRun, recordDry, which } from './adapters/exec.ts';
import { CudapoolError, unfitError, usageError } from './errors.ts';
import { print, printJson, progress, warn } from './output.ts';
import { built, CRIU_DEFAULT, criuTree, inRoot, root, version } from './paths.ts';

/** What the harness needs only to build things. */
const BUILD_ONLY = new Set(['typescript', 'node-gyp']);
/** Part of every glibc system; ours would not fit the target's loader. */
const SYSTEM_LIBRARIES = /^(ld-linux|libc\.so|libm\.so|libpthread\.so|libdl\.so|librt\.so|libresolv\.so|libutil\.so)/;
const ARCHIVE = 'cudapool.tar.xz';
const SCRIPT = 'unpack-and-run.sh';
/** Beside each wrapper: what it runs. */
const REAL_DIR = 'real';

interface Staging {
  /** The folder that becomes the archive. */
  readonly dir: string;
  /** What lib/ gets: name -> the file on this machine. */
  readonly libraries: Map<string, string>;
}

function put(to: string, from: string): void {
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, to);
}

/** One of harness/bundle's scripts, with its @NAMES@ filled in. */
export function script(to: string, template: string, values: Readonly<Record<string, string>> = {}): void {
  mkdirSync(dirname(to), { recursive: true });
  const text = readFileSync(inRoot('harness', 'bundle', template), 'utf8');
  writeFileSync(
    to,
    text.replaceAll(/@([A-Z0-9]+)@/g, (whole, name: string) => values[name] ?? whole),
  );
  chmodSync(to, 0o755);
}

/** A file of the project, at the same place in the bundle. */
function keep(staging: Staging, path: string, hint: string): void {
  if (!existsSync(path)) throw unfitError('ERR_CUDAPOOL_NOT_BUILT', `${path} is missing`, hint);
  put(join(staging.dir, relative(root, path)), path);
}

/**
 * A program of this machine. Its libraries go to lib/, and a wrapper at `to` finds them there: podman clears the
 * environment of what it starts, so it is no use to set LD_LIBRARY_PATH once for all.
 */
async function wrap(staging: Staging, to: string, from: string): Promise<void> {
  const { strip, librariesOf } = await import('./adapters/binutils.ts');
  // Under its own name: what it calls itself, and what others call it, stays right.
  const real = join(staging.dir, dirname(to), REAL_DIR, basename(to));
  mkdirSync(dirname(real), { recursive: true });
  await strip(from, real);
  for (const library of await librariesOf(from)) {
    if (!SYSTEM_LIBRARIES.test(basename(library))) staging.libraries.set(basename(library), library);
  }
  const up = relative(join('/', dirname(to)), '/');
  script(join(staging.dir, to), 'wrap.sh', { UP: up, PROGRAM: join(REAL_DIR, basename(to)) });
}

/** The folders of the packages that run the harness, their dependencies included. */
export function runtimePackages(): string[] {
  const found = new Set<string>();
  const visit = (name: string, from: string, optional: boolean): void => {
    let dir = from;
    while (!existsSync(join(dir, 'node_modules', name, 'package.json'))) {
      const parent = dirname(dir);
      if (parent === dir) {
        if (optional) return;
        throw unfitError('ERR_CUDAPOOL_NOT_BUILT', `the npm package ${name} is missing`, 'npm ci');
      }
      dir = parent;
    }
    const at = realpathSync(join(dir, 'node_modules', name));
    if (found.has(at)) return;
    found.add(at);
    const manifest = createRequire(import.meta.url)(join(at, 'package.json')) as {
      dependencies?: Record<string, string>;
      optionalDependencies?: Record<string, string>;
    };
    for (const needed of Object.keys(manifest.dependencies ?? {})) visit(needed, at, false);
    for (const needed of Object.keys(manifest.optionalDependencies ?? {})) visit(needed, at, true);
  };
  const manifest = JSON.parse(readFileSync(inRoot('package.json'), 'utf8')) as { dependencies: Record<string, string> };
  for (const name of Object.keys(manifest.dependencies)) if (!BUILD_ONLY.has(name)) visit(name, root, false);
  return [...found].sort();
}

function keepHarness(staging: Staging): void {
  const code = inRoot('build', 'harness');
  if (!existsSync(join(code, 'cli.js')))
    throw unfitError('ERR_CUDAPOOL_NOT_BUILT', `${code} is missing`, 'bin/cudapool setup');
  const withoutTypes = (path: string): boolean =>
    !/\.(map|d\.[cm]?ts|md|flow)$/.test(path) || statSync(path).isDirectory();
  cpSync(code, join(staging.dir, 'build', 'harness'), { recursive: true, filter: withoutTypes });
  for (const at of runtimePackages()) {
    cpSync(at, join(staging.dir, relative(root, at)), { recursive: true, filter: withoutTypes });
  }
  for (const file of ['package.json', 'wire/rules.mk', 'wire/options.def'])
    keep(staging, inRoot(file), 'the checkout is incomplete');
}

/** What make left in a room: executables and libraries, no objects. */
function keepRoom(staging: Staging, room: string): void {
  const dir = inRoot(room);
  const left = existsSync(dir)
    ? readdirSync(dir, { recursive: true, withFileTypes: true }).filter(
        (entry) => entry.isFile() && !/\.(o|d|a|c|h|ts|md)$/.test(entry.name),
      )
    : [];
  for (const entry of left) {
    const path = join(entry.parentPath, entry.name);
    const head = readFileSync(path).subarray(0, 4);
    const isElf = head.equals(Buffer.from('\u007fELF', 'latin1'));
    if (isElf || /\.(py|costs|conf|json)$/.test(entry.name)) put(join(staging.dir, relative(root, path)), path);
  }
}

async function keepCriu(staging: Staging, criuVersion: string): Promise<void> {
  const tree = criuTree(criuVersion);
  const hint = `bin/cudapool build --criu-version ${criuVersion}`;
  const binary = join(tree, 'criu', 'criu');
  if (!existsSync(binary)) throw unfitError('ERR_CUDAPOOL_NOT_BUILT', `${binary} is missing`, hint);
  await wrap(staging, relative(root, binary), binary);
  const { strip } = await import('./adapters/binutils.ts');
  for (const plugin of pluginsIn(tree)) {
    const to = join(staging.dir, relative(root, plugin));
    mkdirSync(dirname(to), { recursive: true });
    await strip(plugin, to);
  }
}

function pluginsIn(tree: string): string[] {
  return readdirSync(tree, { recursive: true, encoding: 'utf8' })
    .filter((name) => basename(name) === 'cuda_plugin.so')
    .map((name) => join(tree, name));
}

async function keepTools(staging: Staging): Promise<void> {
  for (const tool of ['podman', 'conmon', 'runc']) {
    const path = which(tool, `${process.env.PATH ?? ''}:/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec/podman`);
    if (path === undefined)
      throw unfitError('ERR_CUDAPOOL_TOOL_MISSING', `${tool} is not installed`, 'bin/cudapool setup');
    await wrap(staging, `tools/${tool}`, realpathSync(path));
  }
  const { strip, librariesOf } = await import('./adapters/binutils.ts');
  mkdirSync(join(staging.dir, 'tools'), { recursive: true });
  await strip(process.execPath, join(staging.dir, 'tools', 'node'));
  // Apart from the others, and used only where the machine has none that serves: PyTorch brings its own.
  for (const library of await librariesOf(process.execPath)) {
    if (!SYSTEM_LIBRARIES.test(basename(library))) put(join(staging.dir, 'lib-node', basename(library)), library);
  }
  for (const [name, from] of staging.libraries) put(join(staging.dir, 'lib', name), from);
}

export async function sha256Of(file: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(file)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

interface BundleOptions {
  out: string;
  maxMb: string;
  criuVersion: string;
  json?: boolean;
}

async function bundle(options: BundleOptions): Promise<void> {
  const limit = Number(options.maxMb);
  if (!Number.isFinite(limit) || limit < 1) throw usageError(`--max-mb ${options.maxMb}: not a number of MiB`);
  const out = resolve(options.out);
  const archive = join(out, ARCHIVE);
  if (isDryRun()) {
    recordDry(`write ${archive}`);
    recordDry(`write ${join(out, SCRIPT)}`);
    return;
  }
  const shown = await progress('collecting');
  mkdirSync(inRoot('build'), { recursive: true });
  const staging: Staging = { dir: mkdtempSync(inRoot('build', 'bundle-')), libraries: new Map() };
  try {
    keepHarness(staging);
    const { buildCallCost, callCostPrograms } = await import('./adapters/call-cost.ts');
    await buildCallCost();
    const { buildCudartProgram } = await import('./adapters/nvcc.ts');
    const cudart = await buildCudartProgram();
    if (cudart === undefined)
      warn('no nvcc: the frameworks suite goes without the CUDA C program', 'install a CUDA toolkit');
    const programs = [built.cudapoold, built.engineBench, built.dropin, built.shim, ...callCostPrograms];
    for (const path of [...programs, ...(cudart ? [cudart] : [])]) keep(staging, path, 'bin/cudapool setup');
    for (const room of ['softcuda', 'workloads']) keepRoom(staging, room);
    await keepCriu(staging, options.criuVersion);
    await keepTools(staging);
    script(join(staging.dir, 'bin', 'cudapool'), 'cudapool.sh');
    script(join(staging.dir, 'bin', 'cudapool.mjs'), 'cudapool.mjs');
    const { commitOf } = await import('./adapters/git.ts');
    writeFileSync(join(staging.dir, 'bundle.json'), `${JSON.stringify({ version, commit: await commitOf(root) })}\n`);
    shown.update('compressing');
    mkdirSync(out, { recursive: true });
    const { packFolder } = await import('./adapters/tar.ts');
    await packFolder(staging.dir, archive);
    script(join(out, SCRIPT), SCRIPT, { ARCHIVE, SHA256: await sha256Of(archive) });
  } catch (thrown) {
    shown.fail('no bundle was made');
    throw thrown;
  } finally {
    rmSync(staging.dir, { recursive: true, force: true });
  }
  const mib = statSync(archive).size / 2 ** 20;
  if (mib > limit) {
    rmSync(archive);
    rmSync(join(out, SCRIPT));
    shown.fail('the bundle was too large');
    throw new CudapoolError(
      'ERR_CUDAPOOL_BUNDLE_SIZE',
      `the bundle has ${mib.toFixed(1)} MiB, more than --max-mb ${limit}`,
      {
        hint: 'give a larger --max-mb',
      },
    );
  }
  shown.done(`${archive}: ${mib.toFixed(1)} MiB`);
  const result = { archive, script: join(out, SCRIPT), mib: Number(mib.toFixed(1)) };
  if (options.json === true) printJson(result);
  else print(`${result.script} COMMAND runs it on a machine without registries (x86-64, glibc 2.36 or newer, root).`);
}

export function registerBundle(program: Command): void {
  program
    .command('bundle')
    .description('pack all that is needed to run cudapool on a machine without registries or network')
    .option('--out <dir>', 'where the two files go', '.carry')
    .option('--max-mb <mib>', 'fail if the archive is larger', '64')
    .option('--criu-version <version>', 'the CRIU that goes along', CRIU_DEFAULT)
    .option('--dry-run', 'say what would be written')
    .option('--json', 'print the result as JSON')
    .action(bundle);
}
