// SPDX-License-Identifier: MIT
// What the pool keeps of parked memory: by itself with a worker that needs no driver, and with the real one.
import { cpSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { buildSnippets, built, inRoot, runTap, startPool, tempDir, until } from '../support/index.ts';
import {
  acting,
  fault,
  imagesIn,
  PATH,
  type ParkScene,
  startApp,
  startClient,
  startParkScene,
  statusOf,
} from './support.ts';

const programs = await buildSnippets('pool');
const MiB = 1 << 20;

t.jobs = 3;

t.test('by itself, under the sanitizers', async (t) => {
  const programs = ['store', 'store_trouble', 'store_recycle', 'store_host'];
  const out = inRoot('build', 'c', 'pool-store-sanitize');
  mkdirSync(out, { recursive: true });
  const vars = [`OUT=${out}`, 'WERROR=1', 'SANITIZE=address,undefined', ...programs.map((name) => join(out, name))];
  await exec('flock', [join(out, '.lock'), 'make', '-s', '-C', inRoot('test', 'pool'), ...vars], {
    timeoutMs: 120_000,
  });
  for (const name of programs) await runTap(t, join(out, name), []);
});

/** An application of 100 pieces of 2 MiB, parked and checkpointed by a CRIU that has named its directory. */
async function dump(t: Test, env: Record<string, string> = {}): Promise<ParkScene> {
  const scene = await startParkScene(t, programs, { pieces: 100, env });
  const { app, criu } = scene;
  t.match(await criu.say(`do lock ${app.pid}`), { error: 0, path: PATH.parked, parked: 200 * MiB }, 'parked');
  t.equal((await criu.say(`do checkpoint ${app.pid}`)).error, 0, 'checkpointed');
  return scene;
}

/** As at the end of a dump: CRIU's plugin says so, and the process is killed. */
async function die({ criu, app, pool }: ParkScene): Promise<void> {
  await criu.say('release watch');
  app.child.kill('SIGKILL');
  await until('nothing is held', async () => (await statusOf(pool)).held_count === 0);
}

t.test('a dump leaves hot memory and a record', async (t) => {
  const scene = await dump(t);
  await die(scene);
  const status = await statusOf(scene.pool);
  t.match(
    status.parks,
    [{ process: 'shim', pid: scene.app.pid, state: 'saved', tier: 'hot', bytes: 200 * MiB, restores: 0 }],
    'the report has it',
  );
  const [parked] = status.parks;
  t.ok(parked?.path.startsWith(`${scene.images}/cudapool-`) && parked.image_bytes > 0, 'and where');
  const record = { stage: 'dump', path: 'parked', error: 0, process: 'shim', parked_bytes: 200 * MiB };
  t.match(status.records, [record], 'and its record');
  const file = JSON.parse(readFileSync(join(scene.images, 'cudapool-dump.json'), 'utf8'));
  t.match(file, { schema: 'cudapool-records-1', records: [record] }, 'which is beside the image as well');
  t.ok(file.records[0].phases_us.save > 0, 'and says how long saving took');
  t.match(await scene.criu.say(`images restore ${scene.images}`), { line: /^found 1 error 0/ }, 'CRIU finds it');
  await scene.criu.say('close');
  rmSync(scene.images, { recursive: true });
  await until('it is forgotten', async () => (await statusOf(scene.pool)).park_count === 0);
  t.pass('it is let go of when podman removes the checkpoint');
});

t.test('an image of another content with the token of hot memory', async (t) => {
  const scene = await dump(t);
  await die(scene);
  const elsewhere = tempDir(t);
  const [image] = imagesIn(scene.images) as [string];
  cpSync(join(scene.images, image), join(elsewhere, image));
  await exec(join(programs, 'image'), ['alter', join(scene.images, image)], { timeoutMs: 10_000 });
  const refused = await scene.criu.say(`images restore ${scene.images}`);
  t.match(refused.line, /^found 0 error -74 .*not of the memory that the pool has of its token/, 'is refused');
  t.match(refused.line, `${scene.app.pid}, shim, saved to ${scene.images}`.slice(0, 60), 'which says what it is of');
  t.match((await statusOf(scene.pool)).parks, [{ tier: 'hot', state: 'saved' }], 'the memory stays hot');
  const found = /^found 1 error 0 bytes 209715200 hot 209715200/;
  t.match((await scene.criu.say(`images restore ${elsewhere}`)).line, found, 'for its own image, wherever that is');
  await scene.criu.say('close');
  const tool = startClient(t, programs, scene.pool.socket, 'client');
  await tool.say('connect tool');
  await exec(built.cudapoold, ['--evict', 'all', '--socket', scene.pool.socket], { timeoutMs: 10_000 });
  t.match(
    (await tool.say(`images prefetch ${scene.images}`)).line,
    /^found 1 error 0 bytes 209715200 hot 0/,
    'without hot memory it is an image like others',
  );
});

t.test('CUDAPOOL_HOT=off', async (t) => {
  const scene = await dump(t, { CUDAPOOL_HOT: 'off' });
  await die(scene);
  await until('it is not hot', async () => (await statusOf(scene.pool)).parks[0]?.tier !== 'hot');
  t.match((await statusOf(scene.pool)).parks, [{ state: 'saved' }], 'the memory is let go of, the image stays');
  const prefetch = await scene.criu.say(`images prefetch ${scene.images}`);
  t.match(prefetch.line, /keeps nothing on the GPU/, 'and nothing can be prefetched');
});

t.test('the worker is killed', async (t) => {
  const scene = await dump(t);
  await die(scene);
  process.kill((await statusOf(scene.pool)).worker.pid, 'SIGKILL');
  await until('another one is warm', async () => {
    const { worker } = await statusOf(scene.pool);
    return worker.replaced === 1 && worker.state === 'warm';
  });
  t.match((await statusOf(scene.pool)).parks, [{ tier: 'hot' }], 'what is hot stays hot: the keeper has it');
  t.equal(imagesIn(scene.images).length, 1, 'and there is its image');
});

t.test('a pool that is started anew', async (t) => {
  const scene = await dump(t);
  await die(scene);
  await scene.pool.stop();
  const pool = await startPool(t, scene.soft, { args: ['--log', '3'], env: { CUDAPOOL_IMAGE_DIR: tempDir(t) } });
  t.match(await statusOf(pool), { park_count: 0 }, 'knows of nothing');
  const tool = startClient(t, programs, pool.socket, 'client');
  await tool.say('connect tool');
  const found = await tool.say(`images prefetch ${scene.images}`);
  t.match(found.line, /^found 1 error 0 bytes 209715200/, 'loads the image when it is asked to');
  t.match((await statusOf(pool)).parks, [{ state: 'saved', tier: 'hot', bytes: 200 * MiB }], 'and keeps it hot');
});

t.test('as many actions as the worker takes are under way', async (t) => {
  const scene = await dump(t, { CUDAPOOL_THREADS: '1' });
  await die(scene);
  await scene.pool.stop();
  const pool = await startPool(t, scene.soft, { env: { CUDAPOOL_THREADS: '1', CUDAPOOL_PARK: '0' } });
  const other = await startApp(t, programs, scene.soft);
  const criu = startClient(t, programs, pool.socket, 'criu');
  await criu.say('connect plugin');
  await criu.say(`do lock ${other.pid}`);
  fault(scene.soft, 'checkpoint=hang:6000');
  await criu.say(`begin checkpoint ${other.pid}`);
  await acting(pool);
  const tool = startClient(t, programs, pool.socket, 'client');
  await tool.say('connect tool');
  t.match(
    await tool.say(`images prefetch ${scene.images}`),
    { line: /^found 1 error 0/ },
    'memory is found, and loaded',
  );
  t.match(await statusOf(pool), { actions: { running: 1 }, parks: [{ tier: 'hot' }] }, 'before they end');
});
