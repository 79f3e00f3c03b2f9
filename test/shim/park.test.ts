// SPDX-License-Identifier: MIT
// The gate, and parking by a pool of the tests' own: captures, graphs, callbacks, waits, deadlines, and pools that die or lie.
import { join } from 'node:path';
import t from 'tap';
import { buildSnippets, built, runTap, softCuda } from '../support/index.ts';

const out = await buildSnippets('shim');
const program = (name: string): string => join(out, name);
const preload = { LD_PRELOAD: built.shim, SOFTCUDA_DEVICES: '2' };

t.test('the gate by itself', async (t) => {
  for (const args of [[], ['careful'], ['refused']]) await runTap(t, program('gate_unit'), args);
});

t.test('what the stubs pass on', async (t) => {
  const env = { ...softCuda(t).env, LD_LIBRARY_PATH: join(out, 'plain') };
  await runTap(t, program('arguments'), [], env, 'without the shim');
  await runTap(t, program('arguments'), [], { ...env, LD_PRELOAD: built.shim }, 'with it');
});

t.test('parking', async (t) => {
  for (const what of ['nothing', 'cycles', 'pools', 'few', 'own', 'left']) {
    await runTap(t, program('park'), [what], { ...softCuda(t).env, ...preload });
  }
  await runTap(t, program('park'), ['scarce'], { ...softCuda(t, { SOFTCUDA_MEMORY_MB: '1024' }).env, ...preload });
  await runTap(t, program('park'), ['nothing'], { ...softCuda(t).env, ...preload, CUDAPOOL_PARK: '0' }, 'switched off');
});

t.test('applications that are parked', async (t) => {
  const scenes = [
    'load',
    'captures',
    'plain_captures',
    'graphs',
    'streams',
    'callbacks',
    'locks',
    'deadlines',
    'errors',
  ];
  for (const what of [...scenes, 'processes']) {
    await runTap(t, program('gate'), [what], { ...softCuda(t).env, ...preload });
  }
});

t.test(
  'what an application can tell is the same, with the driver by itself, with the shim, and after a park',
  async (t) => {
    const env = { ...softCuda(t, { SOFTCUDA_DEVICES: '2' }).env };
    for (const what of ['attributes', 'freeing', 'waits']) {
      await runTap(t, program('invisible'), [what], env, `${what}, without the shim`);
      await runTap(t, program('invisible'), [what], { ...env, LD_PRELOAD: built.shim }, what);
    }
  },
);

t.test('threads that end within a call, or jump out of it', async (t) => {
  const blocked = 'cuStreamSynchronize=hang';
  const ways: Record<string, string> = {
    cancelled: blocked,
    'cancelled-anywhere': blocked,
    'cancelled-allocating': 'cuMemCreate=hang@2',
    ended: blocked,
    'cancelled-at-the-gate': '',
    jump: blocked,
  };
  for (const [how, SOFTCUDA_FAULTS] of Object.entries(ways)) {
    await runTap(t, program('ends'), [how], { ...softCuda(t, { SOFTCUDA_FAULTS }).env, ...preload }, how);
  }
});
