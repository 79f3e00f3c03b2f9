// SPDX-License-Identifier: MIT
// nvcc: the one program of ours that needs a CUDA toolkit, and only where a machine has one.
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { inRoot } from '../paths.ts';
import { exec, which } from './exec.ts';

/** Where it is built, and where a bundle brings it along. */
export const cudartProgram = inRoot('build', 'c', 'workloads', 'cudart_static');
const SOURCES = [inRoot('workloads', 'frameworks', 'cudart_static.cu'), inRoot('workloads', 'asked.c')];

function compiler(): string | undefined {
  const toolkits = existsSync('/usr/local')
    ? readdirSync('/usr/local')
        .filter((name) => name.startsWith('cuda'))
        .map((name) => join('/usr/local', name, 'bin'))
    : [];
  return which('nvcc', [process.env.PATH ?? '', ...toolkits].join(':'));
}

/** The CUDA C program with the static runtime: as it was built before, or built now; undefined: there is no nvcc. */
export async function buildCudartProgram(): Promise<string | undefined> {
  if (existsSync(cudartProgram)) return cudartProgram;
  const nvcc = compiler();
  if (nvcc === undefined || !SOURCES.every((file) => existsSync(file))) return undefined;
  mkdirSync(dirname(cudartProgram), { recursive: true });
  // PTX of an architecture that every toolkit since 11 knows; the driver compiles it for the GPU that is there.
  const target = ['-gencode', 'arch=compute_80,code=compute_80'];
  await exec(nvcc, ['-O2', '-D_GNU_SOURCE', '-cudart', 'static', ...target, '-o', cudartProgram, ...SOURCES], {
    timeoutMs: 180_000,
  });
  return cudartProgram;
}
