// SPDX-License-Identifier: MIT
// Images that are not what they should be: each is refused, in words that say what to do, and nothing else has changed.
import { copyFileSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import {
  buildSnippets,
  isRoot,
  type Pool,
  type SoftCuda,
  skipUnless,
  softCuda,
  startPool,
  tempDir,
} from '../support/index.ts';
import {
  type App,
  allOfImagesIn,
  type Client,
  imagesIn,
  PATH,
  startApp,
  startClient,
  startParkScene,
  statusOf,
} from './support.ts';

const programs = await buildSnippets('pool');
const CHECKPOINTED = 2; // enum cudapool_process_state
const EBADMSG = -74;
const EXDEV = -18;
const EPROTONOSUPPORT = -93;

t.jobs = 2;

interface Kept {
  soft: SoftCuda;
  app: App;
  images: string;
  socket: string;
  /** Another pool in the place of the last: it has nothing in memory. */
  renew(): Promise<Pool>;
}

/** A process that was parked and checkpointed, with its image; nobody holds it, and no pool has its memory. */
async function kept(t: Test): Promise<Kept> {
  const scene = await startParkScene(t, programs);
  const { soft, app, criu, images, own } = scene;
  const { socket } = scene.pool;
  let { pool } = scene;
  t.match(await criu.say(`do lock ${app.pid}`), { error: 0, path: PATH.parked }, 'parked');
  for (const op of ['checkpoint', 'saved']) t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  await criu.say('release keep');
  await criu.kill();
  const renew = async (): Promise<Pool> => {
    await pool.kill();
    pool = await startPool(t, soft, { socket, env: { CUDAPOOL_IMAGE_DIR: own } });
    return pool;
  };
  return { soft, app, images, socket, renew };
}

async function person(t: Test, socket: string): Promise<Client> {
  const client = startClient(t, programs, socket);
  await client.say('connect tool');
  return client;
}

async function gets(t: Test, app: App, client: Client): Promise<void> {
  for (const op of ['restore', 'unlock', 'unpark'])
    t.match(await client.say(`do ${op} ${app.pid}`), { error: 0 }, `with the right one, ${op}`);
  await app.runs('the application has its memory');
}

t.test('what is seen before the driver is asked', async (t) => {
  const { app, images, socket, renew } = await kept(t);
  const [name] = imagesIn(images) as [string];
  const file = join(images, name);
  const good = join(tempDir(t), 'good');
  copyFileSync(file, good);
  const { length } = readFileSync(good);
  const put = (at: number, bytes: readonly number[]) => (): void => {
    const content = readFileSync(good);
    content.set(bytes, at);
    writeFileSync(file, content);
  };
  const cases: [string, () => unknown, number, RegExp][] = [
    ['cut off', () => truncateSync(file, length - 1), EBADMSG, /cut off, use another copy/],
    ['longer', () => truncateSync(file, length + 4096), EBADMSG, /not as it was written, use another copy/],
    ['with an altered header', put(100, [1, 2, 3]), EBADMSG, /checksum of its header.*damaged, use another copy/],
    ['with altered tables', put(length - 5, [1, 2, 3]), EBADMSG, /checksum of its tables.*damaged, use another copy/],
    ['of a newer version', put(8, [99]), EPROTONOSUPPORT, /version 99.*use the version that wrote it/],
    ['that is something else', () => writeFileSync(file, 'x'.repeat(9000)), EBADMSG, /no image of parked GPU memory/],
    [
      'of another process',
      () => exec(join(programs, 'image'), ['write', file], { timeoutMs: 10_000 }),
      EBADMSG,
      /another token/,
    ],
    ['that is not there', () => rmSync(file), -2, new RegExp(`token ${name.slice(9, 41)}. is not in ${images}`)],
  ];
  for (const [what, spoil, error, words] of cases) {
    const pool = await renew();
    await spoil();
    const client = await person(t, socket);
    const answer = await client.say(`do restore ${app.pid}`);
    t.match(answer, { error, line: words }, `an image ${what} is refused`);
    t.match(await client.say(`do state ${app.pid}`), { error: 0, value: CHECKPOINTED }, 'before the driver was asked');
    t.match(await statusOf(pool), { park_count: 0, worker: { replaced: 0 } }, 'and leaves nothing in the pool');
    await client.kill();
    rmSync(file, { force: true });
    copyFileSync(good, file);
  }
  await gets(t, app, await person(t, socket));
});

t.test('what is seen when it is read', async (t) => {
  const { app, images, socket, renew } = await kept(t);
  const file = join(images, imagesIn(images)[0] as string);
  const content = readFileSync(file);
  const spoilt = Buffer.from(content);
  spoilt.set([1, 2, 3], 4096 + 12345);
  writeFileSync(file, spoilt);
  await renew();
  const client = await person(t, socket);
  const found = await client.say(`images prefetch ${images}`);
  t.match(
    found.line,
    /^found .* error -74 .*checksum of block \d of piece \d is wrong.*use another copy/,
    'prefetching says so',
  );
  const answers = [];
  for (const op of ['restore', 'unlock', 'unpark']) answers.push(await client.say(`do ${op} ${app.pid}`));
  const last = answers.find(({ error }) => error !== 0);
  t.match(last, { error: EBADMSG, line: /checksum of block \d of piece \d/ }, 'and so does a restore');
  await app.stands('the application waits at its gate');
  writeFileSync(file, content);
  for (const op of ['restore', 'unlock', 'unpark']) await client.say(`do ${op} ${app.pid}`);
  await app.runs('until there is a right one');
});

t.test('another GPU', async (t) => {
  const { soft, app, socket, renew } = await kept(t);
  const machine = join(soft.env.SOFTCUDA_DIR as string, 'machine');
  const here = readFileSync(machine);
  writeFileSync(machine, 'another');
  await renew();
  let client = await person(t, socket);
  t.match(
    await client.say(`do restore ${app.pid}`),
    { error: EXDEV, line: /GPU/ },
    'an image of memory on a GPU that this machine lacks is refused',
  );
  await client.kill();
  writeFileSync(machine, here);
  await renew();
  client = await person(t, socket);
  await gets(t, app, client);
});

t.test('a directory that fills up', async (t) => {
  if (!skipUnless(t, isRoot, 'only root can mount')) return;
  const images = tempDir(t);
  const mount = (size: string, ...how: string[]) =>
    exec('mount', ['-t', 'tmpfs', '-o', [...how, `size=${size}`].join(','), 'cudapool-test', images], {
      timeoutMs: 10_000,
    });
  const soft = softCuda(t);
  const pool = await startPool(t, soft, { env: { CUDAPOOL_IMAGE_DIR: tempDir(t) } });
  const app = await startApp(t, programs, soft, ['shim', 'honest', '40']);
  await mount('2m');
  t.teardown(() => exec('umount', ['--lazy', images], { timeoutMs: 10_000 }));
  const criu = startClient(t, programs, pool.socket, 'criu');
  await criu.say('connect plugin');
  t.equal((await criu.say(`images dump ${images}`)).error, 0, 'CRIU names its directory');
  t.match(await criu.say(`do lock ${app.pid}`), { error: 0, path: PATH.parked }, 'parked');
  await criu.say(`do checkpoint ${app.pid}`);
  t.match(
    await criu.say(`do saved ${app.pid}`),
    { error: -28, path: PATH.parked, line: /No space left.*make room/ },
    'the dump fails, and says what to do',
  );
  t.same(allOfImagesIn(images), [], 'nothing is left in the directory');
  t.equal((await criu.say('release undo')).line, 'released', 'it is undone');
  await app.runs('the application runs on');
  await mount('200m', 'remount');
  t.equal((await criu.say(`images dump ${images}`)).error, 0, 'with room in it');
  for (const op of ['lock', 'checkpoint', 'saved']) t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  t.equal(imagesIn(images).length, 1, 'there is an image');
});
