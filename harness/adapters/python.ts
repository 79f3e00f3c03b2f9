// SPDX-License-Identifier: MIT
// python3: what its packages are, and running a program of ours with it.
import * as v from 'valibot';
import { CudapoolError, unfitError } from '../errors.ts';
import { exec, look, which } from './exec.ts';

/** Whether python3 would find this module; it is not imported. */
export async function hasModule(name: string): Promise<boolean> {
  if (which('python3') === undefined) return false;
  const script = 'import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)';
  return (await look('python3', ['-c', script, name], { reject: false })).exitCode === 0;
}

const Places = v.object({
  executable: v.string(),
  prefixes: v.array(v.string()),
  path: v.array(v.string()),
});

export interface PythonPlaces {
  readonly executable: string;
  /** Where its modules are found, in order. */
  readonly path: readonly string[];
  /** Every folder outside of /usr that it needs. */
  readonly folders: readonly string[];
}

/** Where python3 and its packages lie on this machine. */
export async function pythonPlaces(): Promise<PythonPlaces> {
  const script = [
    'import json, os, sys',
    'executable = os.path.realpath(sys.executable)',
    'prefixes = [sys.prefix, sys.base_prefix, os.path.dirname(executable)]',
    'print(json.dumps({"executable": executable, "prefixes": prefixes, "path": [p for p in sys.path if os.path.isdir(p)]}))',
  ].join('\n');
  const { stdout } = await look('python3', ['-c', script]);
  const found = v.safeParse(v.pipe(v.string(), v.parseJson(), Places), stdout);
  if (!found.success) {
    throw unfitError(
      'ERR_CUDAPOOL_PYTHON',
      'python3 does not say where it lies',
      'see what it prints: python3 -m site',
    );
  }
  const { executable, prefixes, path } = found.output;
  const outside = [...prefixes, ...path].filter((folder) => folder !== '/usr' && !folder.startsWith('/usr/'));
  return { executable, path, folders: [...new Set(outside)].sort() };
}

/** Runs a program that prints one JSON document. */
export async function runForJson(
  program: string,
  env: Readonly<Record<string, string | undefined>>,
  timeoutMs: number,
): Promise<unknown> {
  const { stdout } = await exec('python3', [program], { timeoutMs, env: { ...env } });
  try {
    return JSON.parse(stdout);
  } catch (cause) {
    throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', `${program} printed no JSON: ${stdout.trim().slice(0, 200)}`, {
      cause,
    });
  }
}
