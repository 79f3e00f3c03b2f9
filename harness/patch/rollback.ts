// SPDX-License-Identifier: MIT
// `cudapool patch rollback`: gives back the original tree to the byte.
import { existsSync, readdirSync, readFileSync, renameSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { isDryRun, recordDry } from '../adapters/exec.ts';
import { removeBuild } from '../build-record.ts';
import { CudapoolError } from '../errors.ts';
import { say, warn } from '../output.ts';
import { replaceFile } from './apply.ts';
import { changedSince, MANIFEST, type Manifest, type OpenTree, openTree, sha256, sha256Of } from './tree.ts';

const BUILT = 'plugins/cuda/cuda_plugin.so';

export interface RollbackOptions {
  /** Also give back files that were edited since: those edits are lost. */
  force?: boolean;
}
export interface RollbackResult {
  tree: string;
  restored: string[];
  removed: string[];
  /** How many files of a build by `cudapool build` went as well. */
  build_files: number;
  dry: boolean;
}

export async function rollbackPatch(dir: string, options: RollbackOptions = {}): Promise<RollbackResult> {
  const tree = openTree(dir);
  const { manifest } = tree;
  if (manifest === undefined) {
    throw new CudapoolError('ERR_CUDAPOOL_PATCH_NOT_APPLIED', `${dir} is not patched: it has no ${MANIFEST}`, {
      hint: existsSync(join(dir, 'plugins/cuda/cuda_plugin.c.before-context-pool'))
        ? 'it may have been patched by hand: cp cuda_plugin.c.before-context-pool cuda_plugin.c in plugins/cuda'
        : 'there is nothing to roll back',
    });
  }
  const originals = readOriginals(dir, manifest);
  refuseEdited({ ...tree, manifest }, options.force === true);

  const removed = [
    ...manifest.added.flatMap(({ path }) => [path, ...(path.endsWith('.c') ? [path.replace(/\.c$/, '.o')] : [])]),
    ...manifest.backups,
    MANIFEST,
  ].filter((path) => existsSync(join(dir, path)));
  const result = {
    tree: dir,
    restored: manifest.edited.map(({ path }) => path),
    removed,
    build_files: 0,
    dry: isDryRun(),
  };
  if (result.dry) {
    for (const { path, backup } of manifest.edited) recordDry(`cp ${join(dir, backup)} ${join(dir, path)}`);
    for (const path of removed) recordDry(`rm ${join(dir, path)}`);
    return result;
  }

  // The originals come first and the manifest goes last: whatever interrupts this, doing it again completes it.
  for (const [path, content] of originals) {
    if (sha256Of(join(dir, path)) !== sha256(content)) replaceFile(join(dir, path), content);
  }
  result.build_files = removeBuild(dir);
  restorePlugin(dir, manifest);
  for (const path of removed) if (path !== MANIFEST) rmSync(join(dir, path), { force: true });
  for (const folder of manifest.folders) removeFolder(join(dir, folder));
  rmSync(join(dir, MANIFEST));
  if (result.build_files === 0 && existsSync(join(dir, 'criu', 'criu'))) {
    say(`what make built in ${dir} is CRIU's own and stays; 'make -C ${dir} cuda_plugin' builds the original plugin`);
  }
  return result;
}

/** The backups, checked: what is given back is what was there. */
function readOriginals(dir: string, manifest: Manifest): Map<string, Buffer> {
  const originals = new Map<string, Buffer>();
  for (const { path, before, backup } of manifest.edited) {
    const source = [backup, path].find((candidate) => sha256Of(join(dir, candidate)) === before);
    if (source === undefined) {
      throw new CudapoolError(
        'ERR_CUDAPOOL_PATCH_BACKUP',
        `${join(dir, backup)} is ${existsSync(join(dir, backup)) ? 'not the original any more' : 'gone'}`,
        {
          hint: `unpack ${path} of CRIU ${manifest.criu} as ${backup} and run this again`,
        },
      );
    }
    originals.set(path, readFileSync(join(dir, source)));
  }
  return originals;
}

function refuseEdited(tree: OpenTree & { manifest: Manifest }, force: boolean): void {
  const edited = changedSince(tree).filter(({ found }) => found === 'edited');
  if (edited.length === 0) return;
  if (force) {
    warn(`edits made since are lost: ${edited.map(({ path }) => path).join(', ')}`);
    return;
  }
  throw new CudapoolError('ERR_CUDAPOOL_PATCH_EDITED', `${tree.dir} was edited since it was patched`, {
    lines: edited.map(({ path }) => path),
    hint: `'cudapool patch rollback --force --criu-src ${tree.dir}' gives up those edits; nothing is changed so far`,
  });
}

/** A plugin built from the patched source goes; the one that was there before comes back. */
function restorePlugin(dir: string, manifest: Manifest): void {
  if (manifest.plugin_backup !== null && existsSync(join(dir, manifest.plugin_backup))) {
    renameSync(join(dir, manifest.plugin_backup), join(dir, BUILT));
  } else {
    rmSync(join(dir, BUILT), { force: true });
  }
}

function removeFolder(folder: string): void {
  if (!existsSync(folder)) return;
  const rest = readdirSync(folder);
  if (rest.length === 0) rmdirSync(folder);
  else warn(`${folder} stays: it holds ${rest.join(', ')}, which the patch did not put there`);
}
