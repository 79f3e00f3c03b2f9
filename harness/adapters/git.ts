// SPDX-License-Identifier: MIT
// git(1): which commit this is.
import { look } from './exec.ts';

/** The commit of the tree at `dir`, '+' added where files differ from it; null where there is no git or no commit. */
export async function commitOf(dir: string): Promise<string | null> {
  try {
    const head = await look('git', ['-C', dir, 'rev-parse', '--verify', 'HEAD'], { reject: false });
    if (head.exitCode !== 0) return null;
    const changed = await look('git', ['-C', dir, 'status', '--porcelain', '--untracked-files=no'], { reject: false });
    return `${head.stdout.trim()}${changed.stdout.trim() === '' ? '' : '+'}`;
  } catch {
    return null; // git is not installed
  }
}
