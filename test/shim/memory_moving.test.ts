// SPDX-License-Identifier: MIT
// GPU memory as the shim makes it: it must come out of the process and go back, and be counted right.
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { buildSnippets, built, runTap, softCuda, startPool } from '../support/index.ts';

const out = await buildSnippets('shim');
const program = (name: string): string => join(out, name);

type Runs = readonly [name: string, env: Record<string, string>][];

async function run(t: Test, name: string, runs: Runs): Promise<void> {
  for (const [which, extra] of runs) {
    const { env } = softCuda(t, { SOFTCUDA_DEVICES: '2', SOFTCUDA_MEMORY_MB: '1024', ...extra });
    await runTap(t, program(name), [which], { ...env, LD_PRELOAD: program('memory_shim.so') });
  }
}

t.test('out and back', async (t) => {
  await run(t, 'memory_moving', [
    ['cycles', { SOFTCUDA_MEMORY_MB: '4096' }],
    ['little', { SOFTCUDA_MEMORY_MB: '160' }],
    ['many', { SOFTCUDA_MEMORY_MB: '32768' }],
    ['peers', {}],
    ['devices', {}],
    ['apart', { SOFTCUDA_FAULTS: 'cuMemSetAccess=999@2,cuMemSetAccess=999@3' }],
    ['apart', { SOFTCUDA_FAULTS: 'cuDeviceCanAccessPeer=101@1' }],
    ['counted', {}],
    ['ordered', {}],
    ...['cuMemCreate=801@1', 'cuMemAddressReserve=999@1', 'cuMemMap=1@3', 'cuMemSetAccess=1@1'].map(
      (fault): [string, Record<string, string>] => ['refused', { SOFTCUDA_FAULTS: fault }],
    ),
    ['stuck', { SOFTCUDA_FAULTS: 'cuMemUnmap=206@2' }],
  ]);
});

t.test('at the edges', async (t) => {
  // What the software driver lacks, another one has.
  const newer = { LD_LIBRARY_PATH: join(out, 'newer') };
  await run(t, 'memory_edges', [
    ['crowd', { SOFTCUDA_MEMORY_MB: '16384', SOFTCUDA_FAULTS: 'cuMemCreate=hang:3000@1' }],
    ['wanted', { SOFTCUDA_MEMORY_MB: '128' }],
    ['beyond', newer],
    ['green', newer],
  ]);
});

t.test("another process's memory", async (t) => {
  const imports = program('imports');
  await runTap(t, imports, ['shim'], { ...softCuda(t).env, LD_PRELOAD: built.shim });
  await runTap(t, imports, ['offered'], { ...softCuda(t).env, LD_PRELOAD: built.shim });
  const newer = { ...softCuda(t).env, LD_LIBRARY_PATH: join(out, 'newer') };
  await runTap(t, imports, ['opened'], { ...newer, LD_PRELOAD: built.shim });
  await runTap(t, imports, ['stock'], softCuda(t).env);
  const soft = softCuda(t);
  for (const CUDAPOOL_PARK of ['1', '0']) {
    const pool = await startPool(t, soft, { env: { CUDAPOOL_PARK, CUDAPOOL_IMAGE_DIR: soft.dir } });
    const PATH = `${dirname(built.dropin)}:${process.env.PATH}`;
    const env = { ...soft.env, PATH, CUDAPOOL_SOCKET: pool.socket, LD_PRELOAD: built.shim };
    await runTap(t, imports, ['pooled'], env, `a pool with CUDAPOOL_PARK=${CUDAPOOL_PARK}`);
    await pool.stop();
  }
});
