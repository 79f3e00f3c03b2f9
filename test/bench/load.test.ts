// SPDX-License-Identifier: MIT
// Images: what is in them of memory that was reserved only, and their way from the disk, on the software driver.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cachedBytes, dropFromCache, readMs } from '../../harness/adapters/page-cache.ts';
import { isInMemory } from '../../harness/bench/cycle.ts';
import { skipUnless, tempDir } from '../support/index.ts';
import { bench, ready } from './fixture.ts';

t.test('more reserved than filled: the image has what is filled', async (t) => {
  if (!skipUnless(t, ready, 'needs root, and CRIU built')) return;
  const [record] = await bench(t, ['reserve']);
  t.match(
    record?.runs,
    [{ variant: 'hot-move', verified: true, values: { parked_mib: 1040 } }],
    'whole 2 MiB of each piece',
  );
  t.match(record?.verdicts[1], { what: 'its image, MiB', met: true });
});

t.test('a cold load reads the disk', async (t) => {
  if (!skipUnless(t, ready, 'needs root, and CRIU built')) return;
  if (!skipUnless(t, !isInMemory('/tmp'), 'needs /tmp on a disk')) return;
  const [staged, cold, ...others] = await bench(t, ['load', '--gib', '0.03125', '--only', 't16-c4,cold']);
  t.same(others, []);
  t.same(
    staged?.runs.map(({ variant, verified }) => [variant, verified]),
    [['t16-c4', true]],
  );
  t.same(
    cold?.runs.map(({ variant, verified }) => [variant, verified]),
    [
      ['disk', true],
      ['cold', true],
    ],
  );
});

t.test('what is in the page cache, and out of it', async (t) => {
  if (!skipUnless(t, !isInMemory('/tmp'), 'needs /tmp on a disk')) return;
  const file = join(tempDir(t), 'file');
  const bytes = 9 * 2 ** 20 + 5;
  writeFileSync(file, Buffer.alloc(bytes, 1));
  t.ok((await cachedBytes(file)) >= bytes);
  await dropFromCache(file);
  t.equal(await cachedBytes(file), 0);
  t.ok((await readMs(file, 3)) > 0);
  t.ok((await cachedBytes(file)) >= bytes, 'it was all read');
  const inMemory = join(tempDir(t, '/dev/shm'), 'file');
  writeFileSync(inMemory, 'x');
  await t.rejects(dropFromCache(inMemory), { code: 'ERR_CUDAPOOL_NOT_COLD', hint: /CUDAPOOL_SCRATCH/ });
  await t.rejects(cachedBytes('/nonexistent'), { message: /page_cache look .nonexistent failed/ });
});
