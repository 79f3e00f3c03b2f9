// SPDX-License-Identifier: MIT
// `cudapool patch apply`: everything is computed before anything is written, and undone if writing fails.
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { isDryRun, recordDry } from '../adapters/exec.ts';
import { CudapoolError } from '../errors.ts';
import { warn } from '../output.ts';
import { version } from '../paths.ts';
import {
  changedSince,
  MANIFEST,
  type Manifest,
  type OpenTree,
  openTree,
  PLUGIN,
  type Plan,
  planPatch,
  readOriginal,
  sha256,
  sha256Of,
} from './tree.ts';

export interface ApplyOptions {
  /** Patch files that differ from the release, if every edit finds its place. */
  force?: boolean;
}
export interface ApplyResult {
  tree: string;
  criu: string;
  edited: { path: string; lines_before: number; lines_after: number }[];
  added: string[];
  backups: string[];
  manifest: string;
  /** true: a dry run, nothing was written. */
  dry: boolean;
}

export async function applyPatch(dir: string, options: ApplyOptions = {}): Promise<ApplyResult> {
  if (isDryRun() && !existsSync(dir)) {
    recordDry(`cudapool patch apply --criu-src ${dir}`);
    return { tree: dir, criu: '', edited: [], added: [], backups: [], manifest: MANIFEST, dry: true };
  }
  const tree = openTree(dir);
  refusePatched(tree);
  const plan = planPatch(tree, (path) => readOriginal(dir, path));
  if (plan.unreleased.length > 0) refuseOrWarn(tree, plan.unreleased, options.force === true);
  else if (tree.table.released[tree.version] === undefined) {
    warn(`CRIU ${tree.version} is newer or older than what the edits were written for; all of them found their places`);
  }
  refuseLeftovers(tree, plan);
  const steps = planBackups(tree, plan);
  const lines = (text: string): number => text.split('\n').length - 1;
  const result: ApplyResult = {
    tree: dir,
    criu: tree.version,
    edited: plan.edited.map(({ path, before, after }) => ({
      path,
      lines_before: lines(before),
      lines_after: lines(after),
    })),
    added: plan.added.map(({ path }) => path),
    backups: steps.manifest.backups,
    manifest: MANIFEST,
    dry: isDryRun(),
  };
  if (result.dry)
    for (const path of [...steps.manifest.backups, ...result.added, MANIFEST, ...result.edited.map((e) => e.path)])
      recordDry(`write ${join(dir, path)}`);
  else write(tree, plan, steps);
  return result;
}

/** Patched already, partly patched, or patched by somebody else: each has another fix. */
function refusePatched(tree: OpenTree): void {
  const { dir, manifest } = tree;
  if (manifest !== undefined) {
    const changed = changedSince({ ...tree, manifest });
    if (changed.length === 0) {
      throw new CudapoolError(
        'ERR_CUDAPOOL_PATCH_APPLIED',
        `${dir} is patched already (cudapool ${manifest.cudapool})`,
        {
          hint:
            manifest.cudapool === version
              ? `'cudapool patch verify --criu-src ${dir}' looks at it`
              : `for this version: 'cudapool patch rollback --criu-src ${dir}', then apply again`,
        },
      );
    }
    throw new CudapoolError('ERR_CUDAPOOL_PATCH_EDITED', `${dir} was patched, and changed since`, {
      lines: changed.map(({ path, found }) => `${path}: ${found}`),
      hint: `'cudapool patch rollback --criu-src ${dir}' says what can be put back; then apply again`,
    });
  }
  const text = readOriginal(dir, PLUGIN);
  if (/\b(init_gpu_context_pool|cudapool_\w+|g_warm_context)\b/.test(text)) {
    throw new CudapoolError(
      'ERR_CUDAPOOL_PATCH_FOREIGN',
      `${join(dir, PLUGIN)} holds a context pool already that this command did not put there`,
      {
        hint: `put back the original: cp ${join(dir, PLUGIN)}.before-context-pool ${join(dir, PLUGIN)}, or unpack the release anew`,
      },
    );
  }
}

/** What somebody left where apply adds files is not ours to write over. */
function refuseLeftovers(tree: OpenTree, plan: Plan): void {
  const there = plan.added.filter(({ path }) => existsSync(join(tree.dir, path))).map(({ path }) => path);
  if (there.length === 0) return;
  throw new CudapoolError('ERR_CUDAPOOL_PATCH_FOREIGN', `${tree.dir} has files where the patch adds its own`, {
    lines: there,
    hint: `they are of a patch that was interrupted, or of another: rm -r ${join(tree.dir, dirname(PLUGIN), 'cudapool')}`,
  });
}

function refuseOrWarn(tree: OpenTree, unreleased: readonly string[], force: boolean): void {
  const what = `${unreleased.join(' and ')} ${unreleased.length === 1 ? 'differs' : 'differ'} from CRIU ${tree.version} as released`;
  if (force) {
    warn(`${what}; all edits found their places, and rollback gives back what is there now`);
    return;
  }
  throw new CudapoolError('ERR_CUDAPOOL_PATCH_UNRELEASED', `${what}: edited by hand, or by a distribution`, {
    hint: 'put back the files of the release; or, if the changes are meant, use --force: every edit then has to find its place',
  });
}

interface Steps {
  manifest: Manifest;
  /** Copies that are made: from, to. */
  copies: [string, string][];
}

const stamp = (date: Date): string => {
  const two = (n: number): string => String(n).padStart(2, '0');
  const day = `${date.getFullYear()}${two(date.getMonth() + 1)}${two(date.getDate())}`;
  return `${day}-${two(date.getHours())}${two(date.getMinutes())}${two(date.getSeconds())}`;
};

/** The guide's backups: one of a fixed name, one with the date. */
function planBackups(tree: OpenTree, plan: Plan): Steps {
  const { dir } = tree;
  const now = new Date();
  const copies: [string, string][] = [];
  const edited: Manifest['edited'] = [];
  for (const { path, before, after } of plan.edited) {
    const backup = `${path}.before-context-pool`;
    const there = sha256Of(join(dir, backup));
    if (there !== undefined && there !== sha256(before)) {
      throw new CudapoolError(
        'ERR_CUDAPOOL_PATCH_BACKUP',
        `${join(dir, backup)} is there, and is no copy of what would be patched`,
        {
          hint: `if it is the original, put it back: cp ${basename(backup)} ${basename(path)}; otherwise move it out of the way`,
        },
      );
    }
    if (there === undefined) copies.push([path, backup]);
    edited.push({ path, before: sha256(before), after: sha256(after), backup });
  }
  copies.push([PLUGIN, freeName(dir, `${PLUGIN}.backup-${stamp(now)}`)]);
  const built = 'plugins/cuda/cuda_plugin.so';
  const plugin_backup = existsSync(join(dir, built)) ? freeName(dir, `${built}.backup-${stamp(now)}`) : null;
  if (plugin_backup !== null) copies.push([built, plugin_backup]);
  const folders = [...new Set(plan.added.map(({ path }) => dirname(path)))].filter(
    (path) => !existsSync(join(dir, path)),
  );
  return {
    copies,
    manifest: {
      schema: 'cudapool-patch-manifest/1',
      cudapool: version,
      criu: tree.version,
      applied_at: now.toISOString(),
      edited,
      added: plan.added.map(({ path, content }) => ({ path, sha256: sha256(content) })),
      folders: folders.sort((a, b) => b.length - a.length),
      backups: copies.map(([, to]) => to),
      plugin_backup,
    },
  };
}

function freeName(dir: string, path: string): string {
  let name = path;
  for (let i = 2; existsSync(join(dir, name)); i++) name = `${path}.${i}`;
  return name;
}

/** First everything that nothing refers to yet; the plugin and its Makefile last, each by a rename. */
function write(tree: OpenTree, plan: Plan, { copies, manifest }: Steps): void {
  const { dir } = tree;
  const undo: (() => void)[] = [];
  try {
    for (const folder of [...manifest.folders].reverse()) {
      mkdirSync(join(dir, folder));
      undo.push(() => rmdirSync(join(dir, folder)));
    }
    for (const { path, content } of plan.added) create(path, content);
    for (const [from, to] of copies) {
      undo.push(() => rmSync(join(dir, to), { force: true }));
      copyFileSync(join(dir, from), join(dir, to));
    }
    create(MANIFEST, `${JSON.stringify(manifest, null, 2)}\n`);
    for (const { path, before, after } of plan.edited) {
      replaceFile(join(dir, path), after);
      undo.push(() => replaceFile(join(dir, path), before));
    }
  } catch (cause) {
    for (const step of undo.reverse()) step();
    throw new CudapoolError('ERR_CUDAPOOL_PATCH_WRITE', `${dir} could not be patched: ${(cause as Error).message}`, {
      cause,
      hint: 'nothing is changed; check that the folder can be written, and that the disk is not full',
    });
  }

  function create(path: string, content: string): void {
    undo.push(() => rmSync(join(dir, path), { force: true }));
    writeFileSync(join(dir, path), content);
  }
}

/** The new text under the old name at once, with the old owner and permissions. */
export function replaceFile(file: string, content: string | Buffer): void {
  const fresh = `${file}.cudapool-new`;
  const { mode, uid, gid } = statSync(file);
  try {
    writeFileSync(fresh, content);
    chmodSync(fresh, mode & 0o7777);
    chownSync(fresh, uid, gid);
    renameSync(fresh, file);
  } finally {
    rmSync(fresh, { force: true });
  }
}
