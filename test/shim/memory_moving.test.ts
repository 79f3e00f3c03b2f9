// SPDX-License-Identifier: MIT
// GPU memory as the shim makes it: it must come out of the process and go back, and be counted right.
import { join } from 'node:path';
import t from 'tap';
import { buildSnippets, runTap, softCuda } from '../support/index.ts';

const out = await buildSnippets('shim');
const program = (name: string): string => join(out, name);

t.test('out and back', async (t) => {
  // What the software driver lacks, another one has.
  const newer = { LD_LIBRARY_PATH: join(out, 'newer') };
  const runs: [string, Record<string, string>][] = [
    ['cycles', { SOFTCUDA_MEMORY_MB: '4096' }],
    ['little', { SOFTCUDA_MEMORY_MB: '160' }],
    ['many', { SOFTCUDA_MEMORY_MB: '32768' }],
    ['peers', {}],
    ['counted', {}],
    ['ordered', {}],
    ['wanted', { SOFTCUDA_MEMORY_MB: '128' }],
    ['beyond', newer],
    ...['cuMemCreate=801@1', 'cuMemAddressReserve=999@1', 'cuMemMap=1@3', 'cuMemSetAccess=1@1'].map(
      (fault): [string, Record<string, string>] => ['refused', { SOFTCUDA_FAULTS: fault }],
    ),
    ['stuck', { SOFTCUDA_FAULTS: 'cuMemUnmap=206@2' }],
  ];
  for (const [run, extra] of runs) {
    const { env } = softCuda(t, { SOFTCUDA_DEVICES: '2', SOFTCUDA_MEMORY_MB: '1024', ...extra });
    await runTap(t, program('memory_moving'), [run], { ...env, LD_PRELOAD: program('memory_shim.so') });
  }
});
