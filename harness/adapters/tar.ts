// SPDX-License-Identifier: MIT
// tar(1) with xz(1): a folder as one compressed file, and back.
import { mkdirSync } from 'node:fs';
import { exec, isDryRun } from './exec.ts';

/** Packs the contents of `dir`, owned by root, with names in a fixed order so that the same input gives the same file. */
export async function packFolder(dir: string, file: string): Promise<void> {
  await exec(
    'tar',
    [
      '--create',
      '--file',
      file,
      '--use-compress-program',
      'xz -3 -T0',
      '--sort=name',
      '--owner=0',
      '--group=0',
      '--numeric-owner',
      '--mtime=@0',
      '-C',
      dir,
      '.',
    ],
    { timeoutMs: 600_000, package: 'xz-utils' },
  );
}

/** A folder as a plain archive, as it is. */
export async function archiveFolder(dir: string, file: string): Promise<void> {
  await exec('tar', ['--create', '--file', file, '-C', dir, '.'], { timeoutMs: 120_000 });
}

/** Unpacks `members` (default: all) of a tarball into `dir`, without the archive's first path component. */
export async function unpack(tarball: string, dir: string, members: readonly string[] = []): Promise<void> {
  if (!isDryRun()) mkdirSync(dir, { recursive: true });
  await exec('tar', ['-x', '-f', tarball, '-C', dir, '--strip-components=1', '--no-same-owner', ...members], {
    timeoutMs: 60_000,
    package: 'xz-utils',
  });
}
