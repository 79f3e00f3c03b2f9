// SPDX-License-Identifier: MIT
// Holds on to CRIU's log while it is written: without --keep podman deletes it within the restore.
import { closeSync, type FSWatcher, fstatSync, openSync, watch } from 'node:fs';
import { join } from 'node:path';
import { readTail } from '../adapters/criu-log.ts';
import type { Injection } from './injection.ts';

export interface LogWatch {
  /** What CRIU has written, if it has written anything since the watch began. Ends the watch. */
  end(): string | undefined;
}

/**
 * `logs`: podman's folder of the container. Where only the restore makes it (--import), the injected criu
 * tells: it notes the folder that conmon runs it in, which is that one.
 */
export function watchLog(name: string, logs: string | undefined, injection: Injection): LogWatch {
  const began = Date.now();
  const watchers: FSWatcher[] = [];
  const watched = new Set<string>();
  let fd: number | undefined;

  const tryOpen = (dir: string): void => {
    if (fd !== undefined) return;
    try {
      fd = openSync(join(dir, name), 'r');
    } catch {
      // not there yet
    }
  };
  const follow = (dir: string): void => {
    if (watched.has(dir)) return;
    watched.add(dir);
    try {
      const watcher = watch(dir, { persistent: false }, (_event, file) => {
        if (file !== name) return;
        // a log of an earlier action may have been open: podman removes it, or CRIU empties it
        if (fd !== undefined && fstatSync(fd).nlink === 0 && fstatSync(fd).mtimeMs < began) {
          closeSync(fd);
          fd = undefined;
        }
        tryOpen(dir);
        // the right one is open: CRIU's next thousand lines are none of our business yet
        if (fd !== undefined && fstatSync(fd).mtimeMs >= began) for (const each of watchers) each.close();
      });
      watcher.on('error', () => {}); // the folder went away: what was opened stays open
      watchers.push(watcher);
    } catch {
      return; // no such folder
    }
    tryOpen(dir);
  };
  if (logs !== undefined) {
    follow(logs);
  } else if (injection.dir !== undefined) {
    const notes = watch(injection.dir, { persistent: false }, () => {
      for (const { parent, cwd } of injection.starts()) if (parent !== 'podman') follow(cwd);
    });
    watchers.push(notes);
  }
  return {
    end() {
      for (const watcher of watchers) watcher.close();
      if (fd === undefined) return undefined;
      try {
        return fstatSync(fd).mtimeMs < began ? undefined : readTail(fd);
      } finally {
        closeSync(fd);
      }
    },
  };
}
