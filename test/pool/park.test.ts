// SPDX-License-Identifier: MIT
// The keeper's part of parking: actions are composed, undone and succeeded, and no shim can make it believe a lie.
import { existsSync, rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { buildSnippets, built, type Pool, type SoftCuda, startPool, tempDir, until } from '../support/index.ts';
import {
  type App,
  allOfImagesIn,
  ERRNO,
  fault,
  holdsNothing,
  imagesIn,
  PATH,
  type ParkScene,
  slowClose,
  startApp,
  startClient,
  startParkScene,
  startScene,
  statusOf,
} from './support.ts';

const programs = await buildSnippets('pool');
const MiB = 1 << 20;

t.jobs = 3; // each with a pool of its own

const scene = (t: Test, mode = 'honest', pieces = 3, args: string[] = [], role = 'plugin'): Promise<ParkScene> =>
  startParkScene(t, programs, { mode, pieces, args, role });

t.test('a process is parked, and gets its memory back', async (t) => {
  const { pool, app, criu, images } = await scene(t, 'honest', 100);
  const lock = await criu.say(`do lock ${app.pid}`);
  t.match(lock, { error: 0, path: PATH.parked, parked: 200 * MiB, left: 4096 }, 'lock parks');
  await app.stands('the application stands');
  const checkpoint = await criu.say(`do checkpoint ${app.pid}`);
  t.match(checkpoint, { error: 0, path: PATH.parked, parked: 200 * MiB }, 'checkpoint');
  t.equal(imagesIn(images).length, 1, 'ends when the image has its name');
  t.match(await statusOf(pool), { held: [{ pid: app.pid, locked: true, checkpointed: true, parked: true }] }, 'held');
  t.equal((await criu.say(`do restore ${app.pid}`)).error, 0, 'restore');
  const unlock = await criu.say(`do unlock ${app.pid}`);
  t.ok(unlock.value > app.pid && existsSync(`/proc/${app.pid}/task/${unlock.value}`), "unlock names the shim's thread");
  t.match(await statusOf(pool), { held: [{ parked: true, locked: false }] }, 'memory is still held');
  const unpark = await criu.say(`do unpark ${app.pid}`);
  t.match(unpark, { error: 0, value: PATH.returned, path: PATH.returned, parked: 200 * MiB }, 'unpark');
  await app.runs('the application runs, with its memory');
  t.equal((await statusOf(pool)).held_count, 0, 'nothing is held');
  t.equal(imagesIn(images).length, 1, 'and the image of a dump that succeeded stays');
  t.match(await criu.say(`do unpark ${app.pid}`), { error: -114 }, 'there is nothing more to unpark');
});

/** Checkpoints and restores a process as the driver does it by itself, as where there is no pool. */
async function stock(t: Test, soft: SoftCuda, app: App): Promise<void> {
  for (const action of ['lock', 'checkpoint', 'restore', 'unlock']) {
    const args = ['--action', action, '--pid', String(app.pid)];
    const { exitCode } = await exec(`${built.softcudaBin}/cuda-checkpoint`, args, {
      env: { ...process.env, ...soft.env },
      timeoutMs: 20_000,
      reject: false,
    });
    t.equal(exitCode, 0, `the driver's own ${action}`);
  }
}

/** Pool and CRIU are killed: the next pool has only the images to give back from, and takes its time to free memory. */
async function slowSuccessor(t: Test, { soft, pool, criu }: Pick<ParkScene, 'soft' | 'pool' | 'criu'>): Promise<Pool> {
  await pool.kill();
  const env = { ...slowClose(programs, soft.dir, 20), SLOWCLOSE_NAMED: '1' };
  const next = await startPool(t, soft, { socket: pool.socket, env });
  await criu.kill();
  return next;
}

t.test("memory that came back is the process's own", async (t) => {
  const { soft, app, criu } = await scene(t);
  for (const op of ['lock', 'checkpoint', 'restore', 'unlock', 'unpark'])
    t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  await stock(t, soft, app);
  await app.runs('the application runs on');
});

t.test('what is not its own is checkpointed with the pool only', async (t) => {
  const { soft, app, criu, images } = await scene(t, 'scarce');
  const cycle = ['lock', 'checkpoint', 'restore', 'unlock', 'unpark'];
  for (const op of cycle) t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  const off = await startPool(t, soft, { env: { CUDAPOOL_PARK: '0' } });
  const other = startClient(t, programs, off.socket, 'criu');
  await other.say('connect plugin');
  t.match(
    await other.say(`do lock ${app.pid}`),
    { error: -95, path: PATH.parked, line: /6 MiB of process \d+ are the pool's memory.*Park it \(CUDAPOOL_PARK=1\)/ },
    'a pool that does not park does not lock it',
  );
  await app.runs('the application runs on');
  await criu.say(`images dump ${images}`);
  for (const op of cycle) t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, `${op} again`);
  await app.runs('and on, with its memory');
});

t.test('little more memory than one batch is enough to give an image back, though freeing takes long', async (t) => {
  const { soft, pool, app, criu } = await scene(t, 'hog', 140); // more than four batches of half the room
  for (const op of ['lock', 'checkpoint']) t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  const next = await slowSuccessor(t, { soft, pool, criu });
  await app.runs('the next pool gives it back from the image, and frees each batch while the next is copied', 25_000);
  await holdsNothing(t, next, 'nothing is held');
  await stock(t, soft, app);
  await app.runs('all of it is its own, though there was no room for it twice');
});

t.test('cycles leave nothing behind', async (t) => {
  const { pool, app, criu, images } = await scene(t, 'honest', 70);
  const cycle = async (): Promise<void> => {
    await criu.say(`images dump ${images}`);
    for (const op of ['lock', 'checkpoint', 'restore', 'unlock', 'unpark']) {
      const { error, line } = await criu.say(`do ${op} ${app.pid}`);
      if (error !== 0) t.fail(line);
    }
  };
  for (let i = 0; i < 3; i++) await cycle();
  const before = await statusOf(pool);
  for (let i = 0; i < 7; i++) await cycle();
  // Descriptors of memory are closed beside the loop, and pages of other processes are looked at now and then.
  const settled = async (): Promise<boolean> => {
    const { descriptors, worker } = await statusOf(pool);
    return descriptors <= before.descriptors && worker.descriptors <= before.worker.descriptors;
  };
  t.ok(await until('descriptors are closed', settled).catch(() => false), 'keeper and worker have no more open');
  t.equal(imagesIn(images).length, 1, 'only the last image is there');
  await app.runs('the application runs, with its memory');
});

t.test('a dump is undone', async (t) => {
  for (const [how, steps] of [
    ['release undo', ['lock', 'checkpoint']],
    ['release undo', ['lock']],
    ['close', ['lock', 'checkpoint']],
    ['close', ['lock']],
  ] as [string, string[]][]) {
    await t.test(`${how} after ${steps.at(-1)}`, async (t) => {
      const { pool, app, criu, images } = await scene(t);
      for (const op of steps) t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
      await criu.say(how);
      await app.runs('the application runs on, with its memory');
      await holdsNothing(t, pool, 'nothing is held');
      t.same(imagesIn(images), [], 'and there is no image');
      t.match(
        await statusOf(pool),
        { given_back: { ok: 1, failed: 0 }, park_count: 0, errors: [] },
        'nor anything else',
      );
    });
  }
});

t.test('CRIU is killed', async (t) => {
  const { pool, app, criu } = await scene(t);
  await criu.say(`do lock ${app.pid}`);
  await criu.say(`begin checkpoint ${app.pid}`);
  await criu.kill();
  await app.runs('the application runs on, with its memory');
  await holdsNothing(t, pool, 'nothing is held');
});

t.test('a process that has not got its memory back is not locked', async (t) => {
  const { pool, app, criu, images } = await scene(t);
  for (const op of ['lock', 'checkpoint', 'restore', 'unlock'])
    t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  const other = startClient(t, programs, pool.socket, 'criu');
  await other.say('connect plugin');
  await other.say(`images dump ${tempDir(t)}`);
  const lock = await other.say(`do lock ${app.pid}`);
  t.match(
    lock,
    { error: ERRNO.EBUSY, path: PATH.parked, line: /memory is parked already/ },
    'another dump would not have it',
  );
  t.equal(imagesIn(images).length, 1, 'the image stays');
  t.equal((await criu.say(`do unpark ${app.pid}`)).error, 0, 'unpark');
  t.match(
    await other.say(`do lock ${app.pid}`),
    { error: 0, path: PATH.parked, parked: 6 * MiB },
    'and then it is parked anew',
  );
});

t.test('a pool that does not know of a park leaves its token alone', async (t) => {
  const { soft, pool, app, criu, images } = await scene(t);
  for (const op of ['lock', 'checkpoint', 'restore', 'unlock'])
    t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  await pool.kill();
  const next = await startPool(t, soft);
  const other = startClient(t, programs, next.socket, 'criu');
  await other.say('connect plugin');
  t.equal((await other.say(`images restore ${images}`)).error, 0, 'the image is there');
  t.match(
    await other.say(`do lock ${app.pid}`),
    { error: ERRNO.EBUSY, path: PATH.parked, line: /parked already/ },
    'it cannot be parked once more',
  );
  const elsewhere = tempDir(t);
  const stranger = startClient(t, programs, next.socket, 'criu');
  await stranger.say('connect plugin');
  t.equal((await stranger.say(`images restore ${elsewhere}`)).error, 0, 'a CRIU with another directory');
  t.match(
    await stranger.say(`do unpark ${app.pid}`),
    { error: -2, line: new RegExp(`is not in ${elsewhere}`) },
    'does not get what is not in it',
  );
  t.match(await other.say(`do unpark ${app.pid}`), { error: 0, path: PATH.loaded }, 'and its memory is found');
  await app.runs('the application runs on, with its memory');
});

t.test('the processes of a tree are given back independently', async (t) => {
  const { soft, pool, app, criu } = await scene(t, 'unpark-fails');
  const other = await startApp(t, programs, soft, ['shim', 'honest', '5']);
  for (const { pid } of [app, other]) await criu.say(`do lock ${pid}`);
  await criu.kill();
  await other.runs('one has its memory');
  t.match(await statusOf(pool), { held: [{ pid: app.pid, parked: true, giving_back: true }] }, 'the other not yet');
});

t.test('an unpark that fails is tried again', async (t) => {
  const { pool, app, criu } = await scene(t, 'unpark-fails-once');
  await criu.say(`do lock ${app.pid}`);
  await criu.kill();
  await app.runs('the application runs on, with its memory');
  await holdsNothing(t, pool, 'nothing is held');
});

t.test('an unpark that fails while what was copied is being freed is tried again, from the image', async (t) => {
  const { soft, pool, app, criu } = await scene(t, 'unpark-fails-late', 100);
  for (const op of ['lock', 'checkpoint']) t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  const next = await slowSuccessor(t, { soft, pool, criu });
  await app.runs('the application runs on, with its memory', 25_000);
  t.match(await statusOf(next), { actions: { unpark: { ok: 1, failed: 1 } } }, 'at the second attempt');
  await holdsNothing(t, next, 'nothing is held');
  await stock(t, soft, app);
});

t.test('the dump is done, and its process lives', async (t) => {
  const { pool, app, criu, images } = await scene(t);
  for (const op of ['lock', 'checkpoint']) await criu.say(`do ${op} ${app.pid}`);
  await criu.say('release watch');
  await criu.say('close');
  await sleep(200);
  await app.stands('nothing happens while CRIU lives');
  await criu.kill();
  await app.runs('then it gets its memory back');
  await holdsNothing(t, pool, 'nothing is held');
  t.equal(imagesIn(images).length, 1, 'the image stays');
});

t.test('the dump is done, and its process dies', async (t) => {
  const { pool, app, criu } = await scene(t);
  for (const op of ['lock', 'checkpoint']) await criu.say(`do ${op} ${app.pid}`);
  await criu.say('release watch');
  app.child.kill('SIGKILL');
  await criu.kill();
  await holdsNothing(t, pool, 'the process is forgotten');
  t.match(
    await statusOf(pool),
    { parks: [{ pid: app.pid, tier: 'hot', state: 'saved', bytes: 6 * MiB }] },
    'its memory is hot',
  );
  const person = startClient(t, programs, pool.socket);
  await person.say('connect tool');
  t.equal((await person.say('stop')).line, 'stopped', 'and does not keep the pool from ending');
});

t.test('a process dies before its image is complete', async (t) => {
  const { pool, app, criu, images } = await scene(t, 'honest', 3, [], 'plugin');
  await criu.say(`do lock ${app.pid}`);
  app.child.kill('SIGKILL');
  await holdsNothing(t, pool, 'the process is forgotten');
  await until(
    'its memory is freed',
    async () => (await statusOf(pool)).park_count === 0 || imagesIn(images).length === 1,
  );
  t.pass('and its memory freed, or the image was faster');
});

t.test('the lock fails after the park', async (t) => {
  const { soft, pool, app, criu } = await scene(t);
  fault(soft, 'lock=999');
  const lock = await criu.say(`do lock ${app.pid}`);
  t.not(lock.error, 0, 'lock fails');
  fault(soft, '');
  t.equal((await statusOf(pool)).held_count, 0, 'and when it has, nothing is held');
  await app.runs('the application runs on, with its memory');
});

t.test('a drop-in parks into the directory of the pool, and unparks by itself', async (t) => {
  const { pool, app, criu, own } = await scene(t, 'honest', 3, [], '');
  t.match(await criu.say(`child lock ${app.pid}`), { error: 0, path: PATH.parked }, 'lock parks');
  t.equal((await criu.say(`child checkpoint ${app.pid}`)).error, 0, 'checkpoint');
  t.equal(imagesIn(own).length, 1, 'the image is there');
  await criu.say(`child restore ${app.pid}`);
  t.equal((await criu.say(`child unlock ${app.pid}`)).error, 0, 'unlock does not wait');
  await app.runs('the application runs, with its memory');
  await holdsNothing(t, pool, 'nothing is held');
});

t.test('a drop-in unlocks, and the shim cannot run yet', async (t) => {
  const { pool, app, criu } = await scene(t, 'slow-unpark', 3, [], '');
  for (const op of ['lock', 'checkpoint', 'restore']) await criu.say(`child ${op} ${app.pid}`);
  t.equal((await criu.say(`child unlock ${app.pid}`)).error, 0, 'unlock does not wait');
  t.match(await statusOf(pool), { held: [{ pid: app.pid, parked: true, under_way: 'unpark' }] }, 'the pool does');
  await app.runs('as soon as the shim runs, the application has its memory');
  await holdsNothing(t, pool, 'nothing is held');
});

t.test("a person's park is nobody's, and not forgotten", async (t) => {
  const { pool, app } = await scene(t, 'honest', 3, [], '');
  const shell = startClient(t, programs, pool.socket);
  for (const op of ['lock', 'checkpoint']) t.equal((await shell.say(`child ${op} ${app.pid}`)).error, 0, op);
  await shell.kill();
  await sleep(1300);
  t.match(
    await statusOf(pool),
    { held: [{ pid: app.pid, owner_pid: 0, parked: true, giving_back: false }] },
    'it stays',
  );
  const again = startClient(t, programs, pool.socket);
  for (const op of ['restore', 'unlock']) t.equal((await again.say(`child ${op} ${app.pid}`)).error, 0, op);
  await app.runs('until a person restores it');
  await holdsNothing(t, pool, 'nothing is held');
});

t.test('RELEASE KEEP leaves the memory with the pool', async (t) => {
  const { pool, app, criu } = await scene(t);
  for (const op of ['lock', 'checkpoint']) await criu.say(`do ${op} ${app.pid}`);
  await criu.say('release keep');
  await criu.kill();
  await sleep(1300);
  await app.stands('the application is left as it is');
  const person = startClient(t, programs, pool.socket);
  await person.say('connect tool');
  for (const op of ['restore', 'unlock', 'unpark'])
    t.equal((await person.say(`do ${op} ${app.pid}`)).error, 0, `a person can ${op}`);
  await app.runs('and it runs on');
});

t.test('a keeper is killed, and the next one gives back', async (t) => {
  for (const [name, steps, path] of [
    ['what is checkpointed', ['lock', 'checkpoint'], 'returned'],
    ['what is unlocked already', ['lock', 'checkpoint', 'restore', 'unlock'], 'loaded'],
  ] as [string, string[], string][]) {
    await t.test(name, async (t) => {
      const { soft, pool, app, criu } = await scene(t);
      for (const op of steps) t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
      await pool.kill();
      const next = await startPool(t, soft, { socket: pool.socket });
      t.match(await statusOf(next), { held: [{ pid: app.pid, owner_pid: criu.pid, parked: true }] }, 'it is known');
      await criu.kill();
      await app.runs('the application runs on, with its memory, from the image');
      await holdsNothing(t, next, 'nothing is held');
      t.match(await statusOf(next), { given_back: { ok: 1, failed: 0 }, records: [{ path }] }, 'one was given back');
    });
  }
});

t.test('a keeper is killed, and the image is gone', async (t) => {
  const { soft, pool, app, criu, images } = await scene(t);
  for (const op of ['lock', 'checkpoint']) await criu.say(`do ${op} ${app.pid}`);
  await pool.kill();
  for (const name of imagesIn(images)) rmSync(`${images}/${name}`);
  const next = await startPool(t, soft, { socket: pool.socket });
  await criu.kill();
  await until('it gives up', async () => (await statusOf(next)).given_back.failed === 1);
  t.match(await statusOf(next), { errors: [{ text: /could not be given back \(restore: .*end it/ }] }, 'loudly');
});

t.test('a pool is told to end while an image is being written', async (t) => {
  const { soft, pool, app, criu, images } = await scene(t, 'honest', 400);
  t.equal((await criu.say(`do lock ${app.pid}`)).error, 0, 'parked');
  t.equal(imagesIn(images).length, 0, 'and not saved yet');
  pool.child.kill('SIGTERM');
  await until('it ends', () => pool.child.exitCode !== null || pool.child.signalCode !== null, 20_000);
  t.equal(imagesIn(images).length, 1, 'it ends when the image is complete');
  await startPool(t, soft, { socket: pool.socket });
  await criu.kill();
  await app.runs('from which the next one gives the memory back');
});

t.test("evict and prefetch, on cudapoold's command line", async (t) => {
  const { pool, app, criu, images } = await scene(t);
  for (const op of ['lock', 'checkpoint']) await criu.say(`do ${op} ${app.pid}`);
  await criu.say('release watch');
  app.child.kill('SIGKILL');
  await holdsNothing(t, pool, 'its process is dead');
  const daemon = process.env.CUDAPOOL_TEST_DAEMON ?? built.cudapoold;
  const run = async (...args: string[]): Promise<{ exitCode?: number; json: Record<string, unknown> }> => {
    const { exitCode, stdout } = await exec(daemon, [...args, '--socket', pool.socket], {
      timeoutMs: 20_000,
      reject: false,
    });
    return { exitCode, json: stdout === '' ? {} : JSON.parse(stdout) };
  };
  const { parks } = (await statusOf(pool)) as unknown as { parks: { token: string; dump: string }[] };
  const found = { error: 0, count: 1, bytes: 6 * MiB };
  t.match(await run('--evict', 'all'), { exitCode: 0, json: { error: 0, count: 1, hot_bytes: 6 * MiB } }, 'evict all');
  t.match(await statusOf(pool), { parks: [{ tier: 'staged' }] }, 'the image is left');
  t.match(await run('--prefetch', images), { exitCode: 0, json: { ...found, dump: parks[0]?.dump } }, 'prefetch');
  t.match(await statusOf(pool), { parks: [{ tier: 'hot' }] }, 'ends when it is hot');
  t.match(
    await run('--evict', `${parks[0]?.token}`, '--tier', 'cold'),
    { exitCode: 0, json: { count: 1 } },
    'evict one',
  );
  t.match(await run('--prefetch', images, '--tier', 'staged'), { exitCode: 0, json: found }, 'prefetch to host memory');
  t.match(await run('--evict', 'f'.repeat(32)), { json: { count: 0 } }, 'a token that nobody knows evicts nothing');
  t.equal((await run('--evict', 'some')).exitCode, 2, 'wrong usage');
  t.equal((await run('--evict', 'all', '--tier', 'hot')).exitCode, 2, 'a tier that makes no sense');
  t.equal((await run('--status', '--tier', 'cold')).exitCode, 2, 'a tier for something else');
  t.equal((await run('--prefetch', '/nowhere')).exitCode, 1, 'no such directory');
});

t.test('parking is off', async (t) => {
  const { app, criu } = await startScene(t, programs, { env: { CUDAPOOL_PARK: '0' }, command: ['shim', 'honest'] });
  t.match(await criu.say(`do lock ${app.pid}`), { error: 0, path: PATH.stock, line: /CUDAPOOL_PARK=0/ }, 'says lock');
});

t.test('only a directory comes with IMAGES', async (t) => {
  const { criu } = await scene(t);
  t.match(await criu.say('images dump /dev/null'), { error: -13, line: /no directory/ }, 'a device is none');
});

// What cannot be parked is locked as it is, and the result says why.
for (const [mode, why] of [
  ['no-cuda', /has not used CUDA yet/],
  ['unparkable', /cannot be parked: it shares memory\?with others/],
  ['version', /control page version/],
] as [string, RegExp][]) {
  t.test(`a shim that says: ${mode}`, async (t) => {
    const { pool, app, criu } = await scene(t, mode);
    t.match(await criu.say(`do lock ${app.pid}`), { error: 0, path: PATH.stock, parked: 0, line: why }, 'is locked');
    t.equal((await criu.say(`do checkpoint ${app.pid}`)).error, 0, 'checkpointed');
    t.match(await statusOf(pool), { held: [{ parked: false }] }, 'and not parked');
    for (const op of ['restore', 'unlock']) await criu.say(`do ${op} ${app.pid}`);
    await app.runs('it runs on');
  });
}

// A park that fails: LOCK fails and says why, the application runs on, and nothing is left behind.
for (const [mode, why, limitMs] of [
  ['silent', /did not answer within \d+ ms/, 400],
  ['late', /did not answer within \d+ ms/, 400],
  ['stall', /did not park its memory within \d+ ms/, 400],
  ['strange', /could not open a channel \(12345\)/],
  ['no-descriptor', /channel of process \d+ cannot be taken/, 1000],
  ['negative', /cannot be taken: Bad file/, 1000],
  ['file', /offers a channel that is none of its own/, 1000],
  ['stream', /offers a channel that is none of its own/, 1000],
  ['token', /answers for another park/],
  ['pieces', /announces what no process has/],
  ['devices', /announces what no process has/],
  ['bytes', /announced another size than it sent/],
  ['begin-short', /sends what is not due/],
  ['garbage', /sends what is not due/],
  ['end-early', /says that it is done before it is/],
  ['refuse', /work is still under way\?\[2J/],
  ['size-odd', /piece of an impossible size/],
  ['size-zero', /piece of an impossible size/],
  ['size-huge', /piece of an impossible size/],
  ['device', /unknown device or kind/],
  ['flags', /unknown device or kind/],
  ['left', /announces what no process has/],
  ['socket', /descriptor of something else than GPU memory/],
  ['pipe', /descriptor of something else than GPU memory/],
  ['device-file', /descriptor of something else than GPU memory/],
  ['no-memory', /descriptor of something else than GPU memory/],
  ['order', /pieces that are not due/],
  ['count', /pieces that are not due/],
  ['zero', /pieces that are not due/],
  ['length', /sends what is not due|pieces that are not due/],
  ['empty', /closed the channel in the middle/],
  ['no-descriptors', /another number of descriptors than of pieces/],
  ['more-descriptors', /another number of descriptors than of pieces/],
  ['fewer-descriptors', /another number of descriptors than of pieces/],
  ['go-fail', /one piece stayed mapped/],
  ['go-close', /closed the channel in the middle/],
  ['go-silent', /did not park its memory within \d+ ms/, 1500],
] as [string, RegExp, number?][]) {
  t.test(`a shim that lies: ${mode}`, async (t) => {
    const { pool, app, criu, images } = await scene(t, mode);
    const before = (await statusOf(pool)).descriptors;
    const lock = await criu.say(`do lock ${app.pid} ${limitMs ?? 0}`);
    t.equal(lock.path, PATH.parked, 'its park fails');
    t.ok(lock.error < 0, 'and with it the lock');
    t.match(lock.line, why, 'and told so');
    if (mode !== 'go-silent') await app.runs('it runs on, with its memory');
    await holdsNothing(t, pool, 'nothing is held');
    t.match(await statusOf(pool), { park_count: 0 }, 'nor kept');
    t.same(allOfImagesIn(images), [], 'nor written');
    t.ok(
      await until('closed', async () => (await statusOf(pool)).descriptors <= before).catch(() => false),
      'no descriptor stays open',
    );
  });
}

t.test('a channel of another process', async (t) => {
  const { pool, app, criu } = await scene(t, 'foreign');
  const lock = await criu.say(`do lock ${app.tickPid()}`);
  t.match(lock, { line: /none of its own/ }, 'is none');
  t.ok(lock.error < 0, 'and the lock fails');
  t.equal((await statusOf(pool)).held_count, 0, 'nothing is held');
});

t.test('a full batch and one more descriptor', async (t) => {
  const { app, criu } = await scene(t, 'more-descriptors', 64);
  t.match(await criu.say(`do lock ${app.pid}`), { line: /could not receive/ }, 'is noticed');
  await app.runs('it runs on');
});

t.test('a process dies in the middle of its park', async (t) => {
  const { pool, app, criu } = await scene(t, 'die');
  t.match(await criu.say(`do lock ${app.pid}`), { line: /has ended|closed the channel/ }, 'the lock fails');
  t.match(await statusOf(pool), { held_count: 0, park_count: 0 }, 'and nothing is kept');
});

t.test('the page says parked, and it is not so', async (t) => {
  const { pool, app, criu } = await scene(t, 'says-parked');
  for (const op of ['unlock', 'restore', 'unpark']) {
    const { error } = await criu.say(`do ${op} ${app.pid}`);
    t.ok(error < 0, `${op} is refused`);
  }
  await app.runs('it runs on');
  t.equal((await statusOf(pool)).held_count, 0, 'nothing is held');
});

for (const mode of ['tid', 'name']) {
  t.test(`a thread that is not the shim's: ${mode}`, async (t) => {
    const { pool, app, criu } = await scene(t, mode);
    await criu.say(`do lock ${app.pid}`);
    t.match(await criu.say(`do unlock ${app.pid}`), { value: 0, line: /thread is missing/ }, 'is not let run');
    await criu.kill();
    await app.runs('and the pool gives the memory back without');
    await holdsNothing(t, pool, 'nothing is held');
  });
}

t.test('acknowledging what was not sent', async (t) => {
  const { app, criu } = await scene(t, 'ack-more');
  await criu.say(`do lock ${app.pid}`);
  await criu.say(`do unlock ${app.pid}`);
  t.match(await criu.say(`do unpark ${app.pid}`), { line: /acknowledges what was not sent/ }, 'is noticed');
});

t.test('a page that changes under us', async (t) => {
  const { pool, app, criu } = await scene(t, 'scribble');
  for (let i = 0; i < 5; i++) {
    const lock = await criu.say(`do lock ${app.pid} 300`);
    t.ok(lock.error < 0 || lock.path === PATH.stock || lock.path === PATH.parked, `attempt ${i} ends`);
    await criu.say('release undo', 60_000);
  }
  t.ok((await pool.status()).pid, 'and the pool is well');
});
