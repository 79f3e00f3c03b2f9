// SPDX-License-Identifier: MIT
// diff(1): unified diffs that patch(1) and git apply take.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CudapoolError } from '../errors.ts';
import { lastLines, look } from './exec.ts';

/** The change of one file; undefined: it is not there. Empty if there is none. */
export async function unifiedDiff(
  path: string,
  before: string | undefined,
  after: string | undefined,
): Promise<string> {
  const dir = mkdtempSync(join(tmpdir(), 'cudapool-diff-'));
  try {
    const side = (name: string, text: string | undefined): string => {
      if (text === undefined) return '/dev/null';
      writeFileSync(join(dir, name), text);
      return join(dir, name);
    };
    const labels = [
      '--label',
      before === undefined ? '/dev/null' : `a/${path}`,
      '--label',
      after === undefined ? '/dev/null' : `b/${path}`,
    ];
    const { exitCode, stdout, stderr } = await look(
      'diff',
      ['-u', ...labels, side('before', before), side('after', after)],
      {
        reject: false,
        env: { LC_ALL: 'C' },
        package: 'diffutils',
      },
    );
    if (exitCode > 1)
      throw new CudapoolError('ERR_CUDAPOOL_COMMAND', `diff failed on ${path}`, { lines: lastLines(stderr) });
    // execa takes the last newline off
    return stdout === '' ? '' : `${stdout}\n`;
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
