// SPDX-License-Identifier: MIT
// `cudapool patch diff`: a unified diff of what apply would do, or has done; made on request, stored nowhere.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { unifiedDiff } from '../adapters/diff.ts';
import { openTree, planPatch, readOriginal } from './tree.ts';

export interface DiffResult {
  tree: string;
  /** false: what apply would do; true: what it has done, and what was edited since. */
  applied: boolean;
  diff: string;
}

export async function diffPatch(dir: string): Promise<DiffResult> {
  const tree = openTree(dir);
  const { manifest } = tree;
  const changes =
    manifest === undefined
      ? planned()
      : [
          ...manifest.edited.map(({ path, backup }) => ({ path, before: read(backup), after: read(path) })),
          ...manifest.added.map(({ path }) => ({ path, before: undefined, after: read(path) })),
        ];
  let diff = '';
  for (const { path, before, after } of changes) diff += await unifiedDiff(path, before, after);
  return { tree: dir, applied: manifest !== undefined, diff };

  function read(path: string): string | undefined {
    return existsSync(join(dir, path)) ? readFileSync(join(dir, path), 'utf8') : undefined;
  }
  function planned(): { path: string; before: string | undefined; after: string | undefined }[] {
    const plan = planPatch(tree, (path) => readOriginal(dir, path));
    return [...plan.edited, ...plan.added.map(({ path, content }) => ({ path, before: undefined, after: content }))];
  }
}
