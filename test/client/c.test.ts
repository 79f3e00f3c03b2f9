// SPDX-License-Identifier: MIT
// The C programs of this room, as they are and with sanitizers, and the option table as TypeScript reads it.
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { buildSnippets, runTap } from '../support/index.ts';

const PROGRAMS = ['options', 'client', 'spawn', 'shim_page'] as const;

for (const sanitize of [undefined, 'address,undefined']) {
  t.test(sanitize === undefined ? 'as it is' : `with ${sanitize}`, async (t) => {
    const out = await buildSnippets('client', sanitize === undefined ? {} : { sanitize });
    t.jobs = PROGRAMS.length;
    await Promise.all(PROGRAMS.map((program) => runTap(t, join(out, program))));
  });
}

t.test('the option table is JSON', async (t) => {
  const out = await buildSnippets('client');
  const env = { CUDAPOOL_CONFIG: '/dev/null', CUDAPOOL_THREADS: '3', CUDAPOOL_LOG_FILE: '/tmp/a "quoted" \\ name\t' };
  const failed = await exec(join(out, 'options'), ['json'], { timeoutMs: 5000, env, reject: false });
  t.equal(failed.exitCode, 1, 'a tab is not allowed in a path');
  env.CUDAPOOL_LOG_FILE = '/tmp/a "quoted" \\ näme';
  const { stdout } = await exec(join(out, 'options'), ['json'], { timeoutMs: 5000, env });
  const table = JSON.parse(stdout) as Record<string, unknown>[];
  const by = (name: string) => table.find((option) => option.name === name);
  t.match(by('threads'), {
    environment: 'CUDAPOOL_THREADS',
    type: 'NUMBER',
    default: '16',
    min: 1,
    max: 64,
    readers: ['pool'],
    value: 3,
    source: 'environment',
  });
  t.match(by('log_file'), { value: env.CUDAPOOL_LOG_FILE, source: 'environment', readers: ['pool', 'shim'] });
  t.match(by('context_pool'), { environment: 'CRIU_CUDA_CONTEXT_POOL', value: 0, source: 'default' });
  t.equal(new Set(table.map((option) => option.environment)).size, table.length, 'every name once');
});
