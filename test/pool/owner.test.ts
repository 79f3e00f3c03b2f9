// SPDX-License-Identifier: MIT
// What the pool has locked or checkpointed for somebody is given back when that one dies, and only then.
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { buildSnippets, until } from '../support/index.ts';
import {
  acting,
  fault,
  holdsNothing,
  type Scene,
  STATE,
  startApp,
  startClient,
  startScene,
  statusOf,
  stop,
} from './support.ts';

const programs = await buildSnippets('pool');

t.jobs = 4; // each with a pool of its own

const scene = (t: Test, role = 'plugin'): Promise<Scene> => startScene(t, programs, { role });

t.test('CRIU is killed while a process is locked', async (t) => {
  const { pool, app, criu } = await scene(t);
  t.equal((await criu.say(`do lock ${app.pid}`)).error, 0, 'locked');
  await app.stands('the application stands');
  t.match(
    await statusOf(pool),
    {
      held: [{ pid: app.pid, owner_pid: criu.pid, locked: true, checkpointed: false }],
      owners: [{ pid: criu.pid, plugin_connections: 1, held: 1, streams: 8, chunk_mb: 256 }],
    },
    'and the report says for whom',
  );
  await criu.kill();
  await app.runs('it runs on');
  await holdsNothing(t, pool, 'nothing is held');
  t.match(await statusOf(pool), { given_back: { ok: 1, failed: 0 }, owner_count: 0 }, 'one process was given back');
});

t.test('CRIU is killed while a process is checkpointed', async (t) => {
  const { pool, app, criu } = await scene(t);
  await criu.say(`do lock ${app.pid}`);
  t.equal((await criu.say(`do checkpoint ${app.pid}`)).error, 0, 'checkpointed');
  await criu.kill();
  await app.runs('it runs on, with its memory');
  await holdsNothing(t, pool, 'nothing is held');
});

for (const op of ['lock', 'checkpoint', 'restore', 'unlock']) {
  t.test(`CRIU is killed during ${op}`, async (t) => {
    const { soft, pool, app, criu } = await scene(t);
    const steps = ['lock', 'checkpoint', 'restore', 'unlock'];
    for (const step of steps.slice(0, steps.indexOf(op)))
      t.equal((await criu.say(`do ${step} ${app.pid}`)).error, 0, step);
    fault(soft, `${op}=hang:1500`);
    await criu.say(`begin ${op} ${app.pid}`);
    t.ok(await acting(pool), 'it is under way');
    await criu.kill();
    await app.runs('it runs on');
    await holdsNothing(t, pool, 'nothing is held');
  });
}

t.test('the connection closes without RELEASE, CRIU lives', async (t) => {
  const { pool, app, criu } = await scene(t);
  await criu.say(`do lock ${app.pid}`);
  await criu.say(`do checkpoint ${app.pid}`);
  await criu.say('close');
  await app.runs('the application runs on');
  await holdsNothing(t, pool, 'nothing is held');
});

t.test('RELEASE UNDO', async (t) => {
  const { pool, app, criu } = await scene(t);
  await criu.say(`do lock ${app.pid}`);
  await criu.say(`do checkpoint ${app.pid}`);
  t.equal((await criu.say('release undo')).line, 'released', 'is answered');
  t.equal((await statusOf(pool)).held_count, 0, 'when nothing is held any more');
  await app.runs('and the application runs on');
  t.equal((await criu.say('release undo')).line, 'released', 'a second one finds nothing to do');
});

t.test('RELEASE KEEP', async (t) => {
  const { pool, app, criu } = await scene(t);
  await criu.say(`do lock ${app.pid}`);
  t.equal((await criu.say('release keep')).line, 'released', 'is answered');
  await criu.kill();
  await sleep(1300);
  await app.stands('the application is left as it is');
  t.equal((await statusOf(pool)).held_count, 0, 'and nothing is held');
  const person = startClient(t, programs, pool.socket);
  await person.say('connect tool');
  t.equal((await person.say(`do unlock ${app.pid}`)).error, 0, 'a person unlocks it');
  await app.runs('and it runs on');
});

t.test('RELEASE WATCH', async (t) => {
  const { soft, pool, app, criu } = await scene(t);
  const dying = await startApp(t, programs, soft);
  for (const { pid } of [app, dying]) {
    await criu.say(`do lock ${pid}`);
    await criu.say(`do checkpoint ${pid}`);
  }
  t.equal((await criu.say('release watch')).line, 'released', 'is answered');
  await criu.say('close');
  await sleep(300);
  t.equal((await statusOf(pool)).held_count, 2, 'closing the connection changes nothing');
  dying.child.kill('SIGKILL');
  await criu.kill();
  const one = await until('one is forgotten', async () => {
    const status = await statusOf(pool);
    return status.held_count < 2 && status;
  });
  t.match(
    one,
    { held_count: 1, held: [{ pid: app.pid, checkpointed: true, giving_back: false }] },
    'who dies with CRIU is forgotten at once, the other has its time',
  );
  await app.runs('and is then given back');
  t.match(await statusOf(pool), { given_back: { ok: 1 }, errors: [] }, 'it alone');
});

t.test('drop-ins that CRIU executes own nothing, CRIU does', async (t) => {
  const { pool, app, criu } = await scene(t, '');
  t.equal((await criu.say(`child lock ${app.pid}`)).error, 0, 'one locks');
  t.equal((await criu.say(`child checkpoint ${app.pid}`)).error, 0, 'the next checkpoints');
  await sleep(200);
  t.match(
    await statusOf(pool),
    {
      held: [{ pid: app.pid, owner_pid: criu.pid, locked: true, checkpointed: true }],
      owners: [{ pid: criu.pid, plugin_connections: 0, streams: 8, chunk_mb: 256 }],
    },
    'both for CRIU, with what it wants for loading',
  );
  await criu.kill();
  await app.runs('which dies: the application runs on');
  await holdsNothing(t, pool, 'nothing is held');
});

t.test("a person's drop-in owns nothing", async (t) => {
  const { pool, app } = await scene(t, '');
  const shell = startClient(t, programs, pool.socket);
  t.equal((await shell.say(`child lock ${app.pid}`)).error, 0, 'it locks');
  t.equal((await statusOf(pool)).held_count, 0, 'nothing is held for the shell');
  await shell.kill();
  await sleep(1300);
  await app.stands('and it stays locked when the shell ends');
});

t.test('what was locked before stays locked', async (t) => {
  const { pool, app, criu } = await scene(t);
  const person = startClient(t, programs, pool.socket);
  await person.say('connect tool');
  t.equal((await person.say(`do lock ${app.pid}`)).error, 0, 'a person locks');
  t.not((await criu.say(`do lock ${app.pid}`)).error, 0, 'CRIU cannot lock it again');
  t.equal((await criu.say(`do checkpoint ${app.pid}`)).error, 0, 'but checkpoints it');
  t.match(await statusOf(pool), { held: [{ locked: false, checkpointed: true }] }, 'that much is held');
  await criu.kill();
  await holdsNothing(t, pool, 'and given back');
  t.equal((await person.say(`do state ${app.pid}`)).value, STATE.locked, 'it is locked, as it was');
});

t.test('a stopped process is given back when it runs again', async (t) => {
  const { pool, app, criu } = await scene(t);
  await criu.say(`do lock ${app.pid}`);
  await criu.say(`do checkpoint ${app.pid}`);
  await stop(app.pid);
  await criu.kill();
  await until('the pool waits for it', async () => {
    const { held, actions } = await statusOf(pool);
    return held[0]?.pid === app.pid && held[0].giving_back && actions.running === 0;
  });
  app.child.kill('SIGCONT');
  await app.runs('it runs on');
  await holdsNothing(t, pool, 'nothing is held');
});

t.test('the owner gives back itself', async (t) => {
  const { pool, app, criu } = await scene(t);
  for (const op of ['lock', 'checkpoint', 'restore', 'unlock'])
    t.equal((await criu.say(`do ${op} ${app.pid}`)).error, 0, op);
  t.equal((await statusOf(pool)).held_count, 0, 'nothing is held');
  await criu.kill();
  await app.runs('the application runs');
  t.match(await statusOf(pool), { given_back: { ok: 0, failed: 0 } }, 'and the pool had nothing to do');
});

t.test('a driver that refuses for a while', async (t) => {
  const { soft, pool, app, criu } = await scene(t);
  await criu.say(`do lock ${app.pid}`);
  fault(soft, 'unlock=999');
  await criu.kill();
  await until('an attempt has failed', async () => ((await statusOf(pool)).held[0]?.failed_attempts ?? 0) > 0);
  t.equal((await statusOf(pool)).held_count, 1, 'it is not forgotten');
  fault(soft, '');
  await app.runs('it is given back at a later attempt');
  await holdsNothing(t, pool, 'nothing is held');
});
