// SPDX-License-Identifier: MIT
// What a CRIU tree holds of the patch: untouched, patched, or something that nobody should write over.
import { createHash } from 'node:crypto';
import { existsSync, lstatSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { satisfies } from 'semver';
import * as v from 'valibot';
import { type CriuTree, criuTreeAt } from '../adapters/criu.ts';
import { CudapoolError } from '../errors.ts';
import { addedFiles, type Edit, type EditTable, editedFiles, editText, readEdits } from './edits.ts';

export const PLUGIN = 'plugins/cuda/cuda_plugin.c';
/** Written by apply, beside the plugin: what it did, for verify, diff and rollback. */
export const MANIFEST = 'plugins/cuda/.cudapool-patch.json';

const path = v.pipe(
  v.string(),
  v.check((name) => resolve('/plugins/cuda', name) !== '/' && /^plugins\/cuda\/[\w./-]+$/.test(name)),
  v.check((name) => !name.split('/').includes('..')),
);
const manifestSchema = v.object({
  schema: v.literal('cudapool-patch-manifest/1'),
  cudapool: v.string(),
  criu: v.string(),
  applied_at: v.string(),
  /** SHA-256 before and after, and where the original is kept. */
  edited: v.array(v.object({ path, before: v.string(), after: v.string(), backup: path })),
  added: v.array(v.object({ path, sha256: v.string() })),
  /** Folders that apply made, the innermost first. */
  folders: v.array(path),
  /** Backups that apply made, and rollback removes. */
  backups: v.array(path),
  /** A copy of the plugin as it was built before; null: it was not. */
  plugin_backup: v.nullable(path),
});
export type Manifest = v.InferOutput<typeof manifestSchema>;

export const sha256 = (content: string | Buffer): string => createHash('sha256').update(content).digest('hex');
export const sha256Of = (file: string): string | undefined =>
  existsSync(file) ? sha256(readFileSync(file)) : undefined;

export interface OpenTree extends CriuTree {
  table: EditTable;
  /** undefined: apply was not here. */
  manifest: Manifest | undefined;
}

/** A CRIU tree of a version that the patch is made for. */
export function openTree(dir: string): OpenTree {
  const tree = criuTreeAt(dir);
  const table = readEdits();
  const full = /^\d+\.\d+$/.test(tree.version) ? `${tree.version}.0` : tree.version;
  if (!satisfies(full, table.criu)) {
    throw new CudapoolError(
      'ERR_CUDAPOOL_CRIU_VERSION',
      `${dir} is CRIU ${tree.version || 'of unknown version'}; the patch is for ${table.criu}`,
      { hint: "take the sources of CRIU 4.1.1 or 4.2.1, or let 'cudapool build --criu-version 4.2.1' fetch them" },
    );
  }
  return { ...tree, table, manifest: readManifest(dir) };
}

function readManifest(dir: string): Manifest | undefined {
  const file = join(dir, MANIFEST);
  if (!existsSync(file)) return undefined;
  try {
    return v.parse(manifestSchema, JSON.parse(readFileSync(file, 'utf8')));
  } catch (cause) {
    throw new CudapoolError('ERR_CUDAPOOL_PATCH_MANIFEST', `${file} is damaged`, {
      cause,
      hint: `copy ${PLUGIN}.before-context-pool and plugins/cuda/Makefile.before-context-pool over the originals, remove plugins/cuda/cudapool and ${file}`,
    });
  }
}

/** What differs from what apply left; empty if nothing does. */
export function changedSince(
  tree: OpenTree & { manifest: Manifest },
): { path: string; found: 'original' | 'edited' | 'missing' }[] {
  const { dir, manifest } = tree;
  const changed: { path: string; found: 'original' | 'edited' | 'missing' }[] = [];
  for (const { path, before, after } of manifest.edited) {
    const now = sha256Of(join(dir, path));
    if (now === after) continue;
    changed.push({ path, found: now === undefined ? 'missing' : now === before ? 'original' : 'edited' });
  }
  for (const { path, sha256 } of manifest.added) {
    const now = sha256Of(join(dir, path));
    if (now !== sha256) changed.push({ path, found: now === undefined ? 'missing' : 'edited' });
  }
  return changed;
}

export interface PlannedEdit {
  path: string;
  before: string;
  after: string;
  edits: Edit[];
}
export interface Plan {
  edited: PlannedEdit[];
  added: { path: string; content: string }[];
  /** Files that differ from the release that the tree says it is; empty where the release is not known to us. */
  unreleased: string[];
}

/** Everything that apply would write, computed from `original(path)`; it changes nothing. */
export function planPatch(tree: OpenTree, original: (path: string) => string): Plan {
  const { table, version } = tree;
  const released = table.released[version];
  const plan: Plan = { edited: [], added: addedFiles(table), unreleased: [] };
  for (const path of editedFiles(table)) {
    const edits = table.edits.filter((edit) => edit.file === path);
    const before = original(path);
    if (released !== undefined && released[path] !== sha256(before)) plan.unreleased.push(path);
    const result = editText(before, edits);
    if ('misplaced' in result) {
      throw new CudapoolError(
        'ERR_CUDAPOOL_PATCH_PLACE',
        `${path} is not as CRIU ${version} has it: ${result.misplaced.length} of ${edits.length} edits do not find their place`,
        {
          lines: result.misplaced.map(({ edit, reason }) => `${edit.insert} (${edit.purpose}): ${reason}`),
          hint: `it was edited by hand or by another patch: put back the file of the release, for instance ${path}.before-context-pool if there is one`,
        },
      );
    }
    plan.edited.push({ path, before, after: result.text, edits });
  }
  return plan;
}

/** The file's text; an error unless it is an ordinary file. */
export function readOriginal(dir: string, path: string): string {
  const file = join(dir, path);
  if (lstatSync(file, { throwIfNoEntry: false })?.isFile() !== true) {
    throw new CudapoolError('ERR_CUDAPOOL_NOT_CRIU', `${file} is no ordinary file`, {
      hint: 'give the folder of an unpacked CRIU release',
    });
  }
  return readFileSync(file, 'utf8');
}
