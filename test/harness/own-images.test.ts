// SPDX-License-Identifier: MIT
// The drop-in's images in the pool's own directory: how many there are, and which of them may go.
import { existsSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cudaAction } from '../../harness/adapters/cuda-checkpoint.ts';
import { makeLab } from '../../harness/container/lab.ts';
import { ownImages, pruneOwnImages } from '../../harness/container/own-images.ts';
import { built } from '../../harness/paths.ts';
import { builtCriu, cudapool, isRoot, skipUnless, softCuda, startPool, tempDir } from '../support/index.ts';

t.test('old images in the pool’s own directory', async (t) => {
  if (!skipUnless(t, isRoot, 'needs root')) return;
  const dir = tempDir(t);
  const config = join(dir, 'cudapool.conf');
  writeFileSync(config, `CUDAPOOL_IMAGE_DIR=${dir}\n`);
  const env = { CUDAPOOL_CONFIG: config, CUDAPOOL_SOCKET: join(dir, 's') };
  const image = (digit: string, hours: number): string => {
    const file = join(dir, `cudapool-${digit.repeat(32)}.img`);
    writeFileSync(file, 'x'.repeat(1000));
    utimesSync(file, new Date(), new Date(Date.now() - hours * 3_600_000));
    return file;
  };
  const [old, young] = [image('a', 25), image('b', 23)];
  writeFileSync(join(dir, 'cudapool-notes.img'), ''); // nobody's image
  const place = { env };
  const own = await ownImages(place);
  t.match(own, { dir, count: 2, bytes: 2000 });
  t.equal(Math.floor(own.oldest_age_s / 3600), 25, 'hours');
  const status = await cudapool(['status', '--json'], { env });
  t.match(JSON.parse(status.stdout), { running: false, own_images: { dir, count: 2 } });

  t.match(await cudapool(['image', 'prune'], { env }), { exitCode: 2, stderr: /--older-than/ });
  for (const wrong of ['7', 'd', '-1d', '1w'])
    t.match(await cudapool(['image', 'prune', '--older-than', wrong], { env }), { exitCode: 2 }, wrong);
  const none = await cudapool(['image', 'prune', '--older-than', '1d'], { env });
  t.match(
    none,
    { exitCode: 1, stderr: /ERR_CUDAPOOL_NO_POOL[\s\S]*cudapool pool start/ },
    'only a pool knows who waits',
  );
  await startPool(t, softCuda(t), { socket: env.CUDAPOOL_SOCKET, env });
  const dry = await cudapool(['image', 'prune', '--older-than', '1d', '--dry-run'], { env });
  t.match(dry, { exitCode: 0, stdout: `rm ${old}` }, dry.stderr);
  t.ok(existsSync(old), 'and nothing is gone');
  const pruned = await cudapool(['image', 'prune', '--older-than', '1d', '--json'], { env });
  t.match(JSON.parse(pruned.stdout), { dir, removed: [old], bytes: 1000, awaited: [], left: 1 });
  t.same([existsSync(old), existsSync(young)], [false, true]);
  t.ok(existsSync(join(dir, 'cudapool-notes.img')));
});

t.test('an image that a living process waits for is not old enough', async (t) => {
  if (!skipUnless(t, isRoot && builtCriu('4.2.1').ready, 'needs root, and CRIU built')) return;
  const lab = await makeLab({ driver: 'software', env: { CUDAPOOL_IMAGE_DIR: tempDir(t) } });
  t.teardown(() => lab.dispose());
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 8, shim: true });
  const tool = { path: built.dropin, env: lab.env };
  const pid = await workload.pid();
  const checksum = (await workload.ask()).answers[0]?.checksum;
  for (const action of ['lock', 'checkpoint'] as const) await cudaAction(tool, action, pid);
  const kept = await pruneOwnImages(0, lab.poolPlace());
  t.match(kept, { removed: [], awaited: [/cudapool-[0-9a-f]{32}\.img$/] });
  const shown = await cudapool(['status'], { env: lab.env });
  t.match(shown.stdout, /^held +1 process\n +gpu_app \(\d+\): parked$/m);
  t.match(shown.stdout, /: 1 image of the drop-in, 8\.0 MiB$/m);

  for (const action of ['restore', 'unlock'] as const) await cudaAction(tool, action, pid);
  t.match((await workload.ask()).answers, [{ checksum }], 'it has its memory back');
  t.match(await pruneOwnImages(0, lab.poolPlace()), { removed: kept.awaited, awaited: [], left: 0 });
});
