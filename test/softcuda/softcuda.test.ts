// SPDX-License-Identifier: MIT
// The software driver's C programs, as they are and with sanitizers, and one real dump and restore by CRIU.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { buildSnippets, builtCriu, isRoot, runTap, skipUnless } from '../support/index.ts';

const PROGRAMS = [
  'abi',
  'driver',
  'context',
  'memory',
  'copies',
  'vmm',
  'share',
  'access',
  'stream',
  'graph',
  'capture',
  'ordered',
  'lock',
  'checkpoint',
  'park',
  'fault',
] as const;

t.setTimeout(300_000); // most of it is compiling with sanitizers

for (const sanitize of [undefined, 'address,undefined']) {
  t.test(sanitize === undefined ? 'as it is' : `with ${sanitize}`, async (t) => {
    t.setTimeout(150_000);
    const out = await buildSnippets('softcuda', sanitize === undefined ? {} : { sanitize });
    t.jobs = 2;
    for (const program of PROGRAMS) void runTap(t, join(out, program));
  });
}

/** CUDAPOOL_TEST_CRIU, or any CRIU that `cudapool build` has left. The plugin is the one built beside it. */
function criu(): string | undefined {
  const given = process.env.CUDAPOOL_TEST_CRIU;
  if (given !== undefined && given !== '') return given;
  return ['4.2.1', '4.1.1'].map(builtCriu).find(({ ready }) => ready)?.criu;
}

t.test('CRIU', async (t) => {
  const program = criu();
  if (!skipUnless(t, isRoot, 'CRIU needs root')) return;
  if (
    !skipUnless(
      t,
      program !== undefined && existsSync(program),
      'no CRIU: run `cudapool build`, or set CUDAPOOL_TEST_CRIU',
    )
  )
    return;
  const out = await buildSnippets('softcuda');
  const plugins = join(dirname(program as string), '..', 'plugins', 'cuda');
  await runTap(t, join(out, 'criu'), [program as string, plugins], { CRIU_CUDA_CONTEXT_POOL: '0' });
});
