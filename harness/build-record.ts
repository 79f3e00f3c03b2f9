// SPDX-License-Identifier: MIT
// Which files a build left in the user's CRIU tree, so that `patch rollback` can take exactly those away.
import { existsSync, readdirSync, readFileSync, renameSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative, resolve, sep } from 'node:path';
import { CudapoolError } from './errors.ts';

const RECORD = '.cudapool-build.json';
const SCHEMA = 'cudapool.build-record/1';

interface BuildRecord {
  schema: typeof SCHEMA;
  /** Paths below the tree that the build made, folders after what is in them. */
  created: string[];
}

function listAll(tree: string): string[] {
  return readdirSync(tree, { recursive: true, withFileTypes: true }).map((entry) =>
    relative(tree, join(entry.parentPath, entry.name)),
  );
}

function readRecord(tree: string): BuildRecord {
  const path = join(tree, RECORD);
  if (!existsSync(path)) return { schema: SCHEMA, created: [] };
  const damaged = (cause?: unknown): CudapoolError =>
    new CudapoolError('ERR_CUDAPOOL_BUILD_RECORD', `${path} is damaged`, {
      cause,
      hint: `run 'make -C ${tree} mrproper' and remove ${path}`,
    });
  let record: BuildRecord;
  try {
    record = JSON.parse(readFileSync(path, 'utf8')) as BuildRecord;
  } catch (cause) {
    throw damaged(cause);
  }
  const inside = (name: unknown): boolean =>
    typeof name === 'string' && name !== '' && resolve(tree, name).startsWith(resolve(tree) + sep);
  if (record.schema !== SCHEMA || !Array.isArray(record.created) || !record.created.every(inside)) throw damaged();
  return record;
}

/**
 * Runs `build` in `tree` and records what it added, whether it succeeds or not. What was built before stays, but
 * for the plugin, which `patch apply` has put aside.
 */
export async function recordBuild(tree: string, build: () => Promise<void>): Promise<void> {
  const record = readRecord(tree);
  const before = new Set(listAll(tree));
  try {
    await build();
  } finally {
    const added = listAll(tree).filter((name) => !before.has(name) && name !== RECORD);
    const created = new Set([...record.created, ...added]);
    record.created = [...created].sort((a, b) => b.length - a.length); // what is in a folder before the folder
    writeRecord(tree, record);
  }
}

function writeRecord(tree: string, record: BuildRecord): void {
  const path = join(tree, RECORD);
  writeFileSync(`${path}.new`, `${JSON.stringify(record, null, 1)}\n`);
  renameSync(`${path}.new`, path);
}

/** Takes away what builds left in `tree`. Returns how many files that were. */
export function removeBuild(tree: string): number {
  const record = readRecord(tree);
  let removed = 0;
  for (const name of record.created) {
    const path = join(tree, name);
    try {
      rmSync(path);
      removed++;
    } catch (thrown) {
      const code = (thrown as NodeJS.ErrnoException).code;
      if (code === 'ERR_FS_EISDIR') removeEmpty(path);
      else if (code !== 'ENOENT') throw thrown;
    }
  }
  rmSync(join(tree, RECORD), { force: true });
  return removed;
}

function removeEmpty(dir: string): void {
  try {
    rmdirSync(dir);
  } catch (thrown) {
    // Somebody put something of their own there: it stays.
    if ((thrown as NodeJS.ErrnoException).code !== 'ENOTEMPTY') throw thrown;
  }
}
