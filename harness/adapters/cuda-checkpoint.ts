// SPDX-License-Identifier: MIT
// cuda-checkpoint: NVIDIA's, the software driver's stand-in for it, or our drop-in; they take the same options.
import { type ExecOptions, type ExecResult, exec } from './exec.ts';

export interface CheckpointTool {
  readonly path: string;
  readonly env: Readonly<Record<string, string | undefined>>;
}

const ACTION_MS = 120_000;

export type CudaAction = 'lock' | 'checkpoint' | 'restore' | 'unlock';

/** One action on a process; with `reject: false` a failed one is handed back. */
export const cudaAction = (
  tool: CheckpointTool,
  action: CudaAction,
  pid: number,
  options: Partial<ExecOptions> = {},
): Promise<ExecResult> =>
  exec(tool.path, ['--action', action, '--pid', String(pid)], {
    timeoutMs: ACTION_MS,
    package: 'the NVIDIA driver, which brings it',
    env: { ...tool.env },
    ...options,
  });

/** The state that the driver says a process is in, or why it says none. */
export async function cudaState(tool: CheckpointTool, pid: number): Promise<string> {
  const { exitCode, stdout, stderr } = await exec(tool.path, ['--get-state', '--pid', String(pid)], {
    timeoutMs: ACTION_MS,
    readOnly: true,
    reject: false,
    env: { ...tool.env },
  });
  return exitCode === 0 ? stdout.trim() : `unknown: ${(stderr || stdout).trim().slice(0, 200)}`;
}
