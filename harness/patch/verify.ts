// SPDX-License-Identifier: MIT
// `cudapool patch verify`: the guide's steps 3 and 5, each with what it expects and what is found.
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { symbolsOf } from '../adapters/nm.ts';
import { CudapoolError } from '../errors.ts';
import { changedSince, type Manifest, type OpenTree, openTree, PLUGIN, sha256Of } from './tree.ts';

export interface Check {
  name: string;
  /** The guide's command, where it has one. */
  command?: string;
  expected: string;
  found: string;
  /** note: it cannot be as the guide says, `why` says why; absent: not built yet. */
  status: 'ok' | 'failed' | 'note' | 'absent';
  why?: string;
}
export interface VerifyResult {
  tree: string;
  criu: string;
  built: boolean;
  ok: boolean;
  checks: Check[];
}

/** The guide's symbols. Lower case: they are static, and still in the file. */
const symbols: readonly (readonly [type: 't' | 'b', name: string])[] = [
  ['t', 'init_gpu_context_pool'],
  ['t', 'fini_gpu_context_pool'],
  ['t', 'prewarm_context_for_restore'],
  ['b', 'g_warm_context'],
  ['b', 'g_context_pool_enabled'],
  ['b', 'g_context_lock'],
  ['b', 'g_warm_device'],
  ['b', 'g_context_initialized'],
];
const FIX = 'cudapool patch rollback, then apply';

export async function verifyPatch(dir: string): Promise<VerifyResult> {
  const tree = openTree(dir);
  const { manifest } = tree;
  if (manifest === undefined) {
    throw new CudapoolError('ERR_CUDAPOOL_PATCH_NOT_APPLIED', `${dir} is not patched`, {
      hint: `'cudapool patch apply --criu-src ${dir}' does that`,
    });
  }
  const patched = { ...tree, manifest };
  const built = existsSync(tree.plugin);
  const checks = [...checkFiles(patched), ...checkSource(patched), ...(await checkPlugin(patched, built))];
  return { tree: dir, criu: tree.version, built, ok: checks.every(({ status }) => status !== 'failed'), checks };
}

function checkFiles(tree: OpenTree & { manifest: Manifest }): Check[] {
  const { dir, manifest } = tree;
  const changed = changedSince(tree);
  const backups = manifest.edited.filter(({ before, backup }) => sha256Of(join(dir, backup)) !== before);
  return [
    {
      name: 'files are as apply left them',
      expected: `${manifest.edited.length} edited, ${manifest.added.length} added`,
      found: changed.length === 0 ? 'unchanged' : changed.map(({ path, found }) => `${path} (${found})`).join(', '),
      status: changed.length === 0 ? 'ok' : 'failed',
      ...(changed.length > 0 && { why: `changed since: ${FIX}` }),
    },
    {
      name: 'backups of the originals',
      command: 'ls -lh cuda_plugin.c*',
      expected: 'cuda_plugin.c.before-context-pool, cuda_plugin.c.backup-…',
      found:
        backups.length === 0
          ? 'there, equal to the originals'
          : `damaged or gone: ${backups.map(({ backup }) => backup).join(', ')}`,
      status: backups.length === 0 ? 'ok' : 'failed',
    },
  ];
}

function checkSource({ dir, manifest }: OpenTree & { manifest: Manifest }): Check[] {
  const text = existsSync(join(dir, PLUGIN)) ? readFileSync(join(dir, PLUGIN), 'utf8') : '';
  const lines = text.split('\n');
  const backup = manifest.edited.find(({ path }) => path === PLUGIN)?.backup ?? '';
  const count = (file: string): number =>
    existsSync(join(dir, file)) ? readFileSync(join(dir, file), 'utf8').split('\n').length - 1 : 0;
  const own = manifest.added.filter(({ path }) => /\.[ch]$/.test(path)).reduce((sum, { path }) => sum + count(path), 0);
  const include = lines.slice(0, 15).find((line) => line.includes('cuda.h'));
  const where = (word: string): number[] => lines.flatMap((line, i) => (line.includes(word) ? [i + 1] : []));
  const definition = lines.findIndex((line) => /^static .*\binit_gpu_context_pool\(int stage\)$/.test(line)) + 1;
  const uses = where('g_warm_context');
  const found = count(PLUGIN);
  return [
    {
      name: 'line count increased',
      command: 'wc -l cuda_plugin.c',
      expected: '~840 (was 659)',
      found: `${found} (was ${count(backup)})`,
      status: found > count(backup) ? 'note' : 'failed',
      why: `the guide counts another release of CRIU, with everything in one file; here ${own} further lines are in cudapool/, beside the plugin`,
    },
    {
      name: 'new include',
      command: 'head -15 cuda_plugin.c | grep "cuda.h"',
      expected: '#include <cuda.h>',
      found: include ?? 'nothing',
      status: include === '#include <cuda.h>' ? 'ok' : 'failed',
    },
    {
      name: 'new functions',
      command: 'grep -n "init_gpu_context_pool" cuda_plugin.c',
      expected: 'a function definition',
      found: definition > 0 ? `defined in line ${definition}` : 'no definition',
      status: definition > 0 ? 'ok' : 'failed',
    },
    {
      name: 'context pool usage',
      command: 'grep -n "g_warm_context" cuda_plugin.c',
      expected: 'several references',
      found: `lines ${uses.join(', ') || 'none'}`,
      status: uses.length > 1 ? 'ok' : 'failed',
    },
  ];
}

async function checkPlugin(tree: OpenTree & { manifest: Manifest }, built: boolean): Promise<Check[]> {
  const { dir, plugin } = tree;
  const nm = 'nm cuda_plugin.so | grep -E "(warm|pool)"';
  if (!built) {
    return [
      {
        name: 'plugin rebuilt',
        command: 'ls -lh plugins/cuda/cuda_plugin.so',
        expected: 'a file',
        found: 'none yet',
        status: 'absent',
        why: `'cudapool build --criu-src ${dir}' builds it; verify then looks at its symbols`,
      },
    ];
  }
  const newer = statSync(plugin).mtimeMs >= statSync(join(dir, PLUGIN)).mtimeMs;
  const have = await symbolsOf(plugin);
  const rebuild = `'cudapool build --criu-src ${dir}' builds it anew`;
  return [
    {
      name: 'plugin rebuilt',
      command: 'stat -c %y plugins/cuda/cuda_plugin.so',
      expected: 'later than the source',
      found: `${statSync(plugin).mtime.toISOString()}, ${statSync(plugin).size} bytes${newer ? '' : ': older than the source'}`,
      status: newer ? 'ok' : 'failed',
      ...(!newer && { why: rebuild }),
    },
    ...symbols.map(([type, name]): Check => {
      const symbol = have.find((candidate) => candidate.name === name);
      const ok = symbol?.type === type;
      const shown = /warm|pool/.test(name);
      return {
        name: `symbol ${name}`,
        command: nm,
        expected: `${type} ${name}`,
        found: symbol === undefined ? 'not there' : `${symbol.type} ${symbol.name}`,
        status: ok ? (shown ? 'ok' : 'note') : 'failed',
        ...(ok &&
          !shown && { why: "the guide lists it, but its own grep cannot: the name holds neither 'warm' nor 'pool'" }),
        ...(!ok && { why: rebuild }),
      };
    }),
  ];
}
