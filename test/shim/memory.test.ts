// SPDX-License-Identifier: MIT
// GPU memory as the shim makes it: the application must see no difference.
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { buildSnippets, built, softCuda } from '../support/index.ts';

const out = await buildSnippets('shim');
const program = (name: string): string => join(out, name);

t.test('the same memory with and without', async (t) => {
  const subjects = ['errors', 'attributes', 'vmm', 'contexts', 'out', 'capture', 'threads', 'ordered', 'devices'];
  for (const subject of subjects) {
    const SOFTCUDA_DEVICES = subject === 'devices' ? '2' : '1';
    const { env } = softCuda(t, { SOFTCUDA_DEVICES, SOFTCUDA_MEMORY_MB: '4096' });
    const says = async (shim: string, extra: Record<string, string> = {}): Promise<string> => {
      const run = { timeoutMs: 20_000, env: { ...env, ...extra, LD_PRELOAD: shim } };
      return (await exec(program('memory'), [subject], run)).stdout;
    };
    const without = await says('');
    t.ok(without.split('\n').length > 5 && !/wrong: [1-9]/.test(without), `${subject}: the driver answers`);
    t.equal(await says(built.shim), without, `${subject}: the same`);
    t.equal(await says(program('memory_shim.so')), without, `${subject}: the same in small pieces`);
    t.equal(await says(built.shim, { CUDAPOOL_PARK: '0' }), without, `${subject}: the same without parking`);
  }
});

t.test('with a driver that cannot name streams', async (t) => {
  const { env } = softCuda(t, { SOFTCUDA_DEVICES: '1', SOFTCUDA_MEMORY_MB: '4096' });
  const run = { timeoutMs: 20_000, env: { ...env, LD_LIBRARY_PATH: join(out, 'older') } };
  const without = (await exec(program('memory'), ['ordered'], run)).stdout;
  const preloaded = { ...run, env: { ...run.env, LD_PRELOAD: built.shim } };
  const { stdout } = await exec(program('memory'), ['ordered'], preloaded);
  t.equal(stdout, without, 'stream-ordered memory is left to it');
});

t.test('many threads and streams', async (t) => {
  const { env } = softCuda(t, { SOFTCUDA_MEMORY_MB: '4096' });
  for (const shim of [built.shim, program('memory_shim.so')]) {
    const run = { timeoutMs: 20_000, env: { ...env, LD_PRELOAD: shim } };
    const { stdout } = await exec(program('memory'), ['ordered_threads'], run);
    t.match(stdout, /\nwrong: 0, used: 0$/, 'each finds in its memory what it put there');
  }
});
