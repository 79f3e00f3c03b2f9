// SPDX-License-Identifier: MIT
// The image of a dump: CHECKPOINT and SAVED of CRIU's plugin, and the keeper that nobody waits for while files are removed.
import { readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { buildSnippets, tempDir } from '../support/index.ts';
import {
  allOfImagesIn,
  type Client,
  holdsNothing,
  imagesIn,
  PATH,
  type ParkScene,
  slowClose,
  startParkScene,
  statusOf,
} from './support.ts';

const programs = await buildSnippets('pool');
const MiB = 1 << 20;

t.jobs = 3;

/** An application that is locked and parked for CRIU's plugin, while its image takes this long. */
async function parked(
  t: Test,
  slowMs: number,
  env: Record<string, string> = {},
  images = tempDir(t),
): Promise<ParkScene> {
  const faults = slowMs ? { SOFTCUDA_FAULTS: `cuEventSynchronize=hang:${slowMs}` } : {};
  const scene = await startParkScene(t, programs, { pieces: 4, images, env: { ...faults, ...env } });
  const { app, criu } = scene;
  t.match(await criu.say(`do lock ${app.pid}`), { error: 0, path: PATH.parked, parked: 8 * MiB }, 'parked');
  return scene;
}

async function one(criu: Client, op: string, pid: number) {
  await criu.say(`begin ${op} ${pid}`);
  return criu.say('next');
}

t.test('CHECKPOINT ends with the driver, SAVED with the image', async (t) => {
  const { app, criu, images } = await parked(t, 3000);
  t.match(await one(criu, 'checkpoint', app.pid), { error: 0, path: PATH.parked, parked: 8 * MiB }, 'checkpointed');
  t.equal(imagesIn(images).length, 0, 'while the image is being written');
  t.match(await one(criu, 'saved', app.pid), { error: 0, path: PATH.parked, parked: 8 * MiB }, 'saved');
  t.equal(imagesIn(images).length, 1, 'means that it has its name');
  t.match(await one(criu, 'saved', app.pid), { error: 0, path: PATH.parked }, 'which can be asked again');
  const { records } = JSON.parse(readFileSync(join(images, 'cudapool-dump.json'), 'utf8'));
  t.equal(records.length, 1, 'there is one record');
  t.ok(records[0].phases_us.checkpoint > 0 && records[0].phases_us.save > 0, 'of both parts');
  for (const op of ['restore', 'unlock', 'unpark']) await criu.say(`do ${op} ${app.pid}`);
  await app.runs('the application has its memory again');
  t.match(await one(criu, 'saved', app.pid), { error: 0, path: PATH.stock, parked: 0 }, 'nothing is parked any more');
});

t.test('an image that cannot be completed', async (t) => {
  const { pool, app, criu, images } = await parked(t, 3000);
  t.equal((await one(criu, 'checkpoint', app.pid)).error, 0, 'checkpointed');
  for (const name of allOfImagesIn(images)) rmSync(join(images, name));
  const saved = await one(criu, 'saved', app.pid);
  t.match(saved, { error: -2, path: PATH.parked, line: /the image of process .* cannot be written to / }, 'said');
  t.equal((await criu.say('release undo')).line, 'released', 'the dump is undone');
  await app.runs('and the application runs, with its memory');
  await holdsNothing(t, pool, 'nothing is held');
  t.equal(allOfImagesIn(images).length, 0, 'there is no image');
});

for (const [what, end] of [
  ['the process is killed', (scene: ParkScene) => scene.app.child.kill('SIGKILL')],
  ['CRIU is killed', (scene: ParkScene) => scene.criu.kill()],
] as const)
  t.test(`${what} while SAVED waits`, async (t) => {
    const scene = await parked(t, 3000);
    t.equal((await one(scene.criu, 'checkpoint', scene.app.pid)).error, 0, 'checkpointed');
    await scene.criu.say(`begin saved ${scene.app.pid}`);
    await end(scene);
    if (what.startsWith('the process')) t.equal((await scene.criu.say('next')).error, -3, 'it is told so');
    else await scene.app.runs('the application has its memory again');
    await holdsNothing(t, scene.pool, 'nothing is held');
    await sleep(100);
    t.equal(imagesIn(scene.images).length, 0, 'there is no image of what nobody can restore');
  });

t.test('the keeper answers while a large image is being removed', async (t) => {
  const images = tempDir(t);
  const token = '0123456789abcdef'.repeat(2);
  // Others may read it, so it is not written over.
  writeFileSync(join(images, `cudapool-${token}.img`), Buffer.alloc(2 * MiB, 1), { mode: 0o644 });
  const began = performance.now();
  const slow = slowClose(programs, images, 20_000);
  const { pool, app, criu } = await parked(t, 0, slow, images);
  t.equal((await one(criu, 'checkpoint', app.pid)).error, 0, 'a dump goes on');
  t.equal((await one(criu, 'saved', app.pid)).error, 0, 'to its end');
  t.match(await statusOf(pool), { held: [{ pid: app.pid }] }, 'and STATUS is answered');
  t.ok(performance.now() - began < 15_000, 'nobody has waited for the old image');
  t.notOk(imagesIn(images).includes(`cudapool-${token}.img`), 'which has no name any more');
});

t.test('the record says what was written over', async (t) => {
  const images = tempDir(t);
  const old = join(images, `cudapool-${'89abcdef01234567'.repeat(2)}.img`);
  writeFileSync(old, Buffer.alloc(3 * MiB, 1), { mode: 0o600 });
  truncateSync(old, 3 * MiB);
  const { ino } = statSync(old);
  const { app, criu } = await parked(t, 0, {}, images);
  t.equal((await criu.say(`do checkpoint ${app.pid}`)).error, 0, 'saved');
  const [image] = imagesIn(images);
  t.equal(statSync(join(images, image as string)).ino, ino, "into the earlier one's file");
  const { records } = JSON.parse(readFileSync(join(images, 'cudapool-dump.json'), 'utf8'));
  t.equal(records[0].recycled_bytes, 3 * MiB, 'as the record says');
});
