// SPDX-License-Identifier: MIT
// CRIU: its source trees, and the program.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CudapoolError } from '../errors.ts';
import { type ExecResult, look } from './exec.ts';

/** Environment in which CRIU's CUDA plugin works without /proc/driver/nvidia/gpus: CRIU's own fault injection. */
export const PRETEND_GPU = { CRIU_FAULT: '138' } as const;

export interface CriuTree {
  dir: string;
  version: string;
  criu: string;
  pluginDir: string;
  plugin: string;
}

/** The CRIU source tree in `dir`; an error that says what is missing if it is none, or too old for the CUDA plugin. */
export function criuTreeAt(dir: string): CriuTree {
  const versions = join(dir, 'Makefile.versions');
  if (!existsSync(versions)) {
    throw new CudapoolError('ERR_CUDAPOOL_NOT_CRIU', `${dir} is not a CRIU source tree: it has no Makefile.versions`, {
      hint: 'give the folder that holds criu/ and plugins/; `cudapool build` without --criu-src fetches a tree',
    });
  }
  const pluginDir = join(dir, 'plugins', 'cuda');
  if (!existsSync(join(pluginDir, 'cuda_plugin.c'))) {
    throw new CudapoolError('ERR_CUDAPOOL_NOT_CRIU', `${dir} has no plugins/cuda/cuda_plugin.c`, {
      hint: 'the CUDA plugin came with CRIU 4.0; cudapool patches 4.1.1 and 4.2.x',
    });
  }
  const text = readFileSync(versions, 'utf8');
  const part = (name: string): string => text.match(new RegExp(`^${name}\\s*:=\\s*(\\d+)`, 'm'))?.[1] ?? '';
  const parts = [part('CRIU_VERSION_MAJOR'), part('CRIU_VERSION_MINOR'), part('CRIU_VERSION_SUBLEVEL')];
  return {
    dir,
    version: parts.filter((n) => n !== '').join('.'),
    criu: join(dir, 'criu', 'criu'),
    pluginDir,
    plugin: join(pluginDir, 'cuda_plugin.so'),
  };
}

/** What `criu --version` says, as in '4.2.1'. */
export async function criuVersionOf(criu: string): Promise<string> {
  const { stdout } = await look(criu, ['--version']);
  return stdout.match(/^Version:\s*(\S+)/m)?.[1] ?? 'unknown';
}

/** `criu check`: whether this kernel has what CRIU needs. It needs root. */
export const criuCheck = (criu: string): Promise<ExecResult> =>
  look(criu, ['check'], { reject: false, env: { LC_ALL: 'C' }, timeoutMs: 30_000 });
