// SPDX-License-Identifier: MIT
// The C rooms: built through harness/native/binding.gyp when a source is newer than the last build.
import { mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { isDryRun } from '../adapters/exec.ts';
import { withLock } from '../adapters/flock.ts';
import { nodeGyp } from '../adapters/make.ts';
import { progress } from '../output.ts';
import { built, inRoot } from '../paths.ts';

const rooms = ['wire', 'preload', 'pool', 'softcuda', 'workloads'];
const results = [
  built.cudapoold,
  built.dropin,
  built.shim,
  join(built.softcudaLib, 'libcuda.so.1'),
  join(built.workloads, 'gpu_app'),
];
const stamp = inRoot('build', '.native');
const sourceName = /(^Makefile|\.(c|h|S|def|map|ver|mk))$/;

const mtime = (path: string): number => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;

/** Whether a source, or the list of options to build with, is newer than the last build. */
export function nativeIsStale(): boolean {
  const last = mtime(stamp);
  if (last === 0 || results.some((file) => mtime(file) === 0)) return true;
  if (mtime(inRoot('package.json')) > last) return true; // the version
  return rooms.some((room) =>
    readdirSync(inRoot(room), { recursive: true, withFileTypes: true }).some(
      (entry) => entry.isFile() && sourceName.test(entry.name) && mtime(join(entry.parentPath, entry.name)) > last,
    ),
  );
}

/** Builds the rooms if need be. Returns whether anything was due. */
export async function ensureNative(): Promise<boolean> {
  if (!nativeIsStale()) return false;
  return withLock(inRoot('build', '.native.lock'), async () => {
    if (!nativeIsStale()) return false; // somebody else did it meanwhile
    const gyp = { dir: inRoot('harness', 'native'), timeoutMs: 300_000 };
    if (isDryRun()) {
      await nodeGyp(gyp);
      return true;
    }
    const started = new Date();
    const shown = await progress('building the pool, the shim, the software driver');
    try {
      await nodeGyp({
        ...gyp,
        onLine: (line) => {
          if (/^\s*(ACTION|CC|LD|cc|gcc)\b/.test(line)) shown.update(line.trim().slice(0, 100));
        },
      });
    } catch (thrown) {
      shown.fail('building failed');
      throw thrown;
    }
    shown.done(`built ${results.map((file) => file.slice(inRoot().length + 1)).join(', ')}`);
    mkdirSync(dirname(stamp), { recursive: true });
    writeFileSync(stamp, '');
    utimesSync(stamp, started, started); // what was edited meanwhile is newer
    return true;
  });
}
