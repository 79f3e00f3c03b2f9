// SPDX-License-Identifier: MIT
// nvidia-smi: how much GPU memory is in use.
import { look, which } from './exec.ts';

/** MiB in use on all GPUs together; undefined where there is no nvidia-smi. */
export async function gpuMemoryUsedMib(): Promise<number | undefined> {
  const path = which('nvidia-smi', `${process.env.PATH ?? ''}:/usr/local/nvidia/bin`);
  if (path === undefined) return undefined;
  const { stdout, exitCode } = await look(path, ['--query-gpu=memory.used', '--format=csv,noheader,nounits'], {
    reject: false,
  });
  const used = stdout
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map(Number);
  return exitCode === 0 && used.length > 0 && used.every(Number.isFinite) ? used.reduce((a, b) => a + b, 0) : undefined;
}
