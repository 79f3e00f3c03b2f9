// SPDX-License-Identifier: MIT
// Checkpoint actions on real processes of the software driver: one by one, many at once, and over and over.
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { buildSnippets, runTap, softCuda, startPool } from '../support/index.ts';
import { ERRNO, STATE, startApp, startClient, startStage, statusOf } from './support.ts';

const programs = await buildSnippets('pool');

t.jobs = 4; // each with a pool of its own

t.test('each action', async (t) => {
  const { pool, app } = await startStage(t, programs);
  const client = startClient(t, programs, pool.socket);
  t.match((await client.say('connect tool 5000')).line, /^welcome 1 generation 1 device 0/, 'the pool is warm');
  t.match(await client.say(`do state ${app.pid}`), { error: 0, value: STATE.running }, 'it runs');

  const tid = (await client.say(`do restore-tid ${app.pid}`)).value;
  t.ok(readdirSync(`/proc/${app.pid}/task`).includes(String(tid)), 'its restore thread is a thread of it');
  t.match(
    await client.say(`do state ${tid}`),
    { error: 0, value: STATE.running },
    "a thread's id stands for its process",
  );

  t.equal((await client.say(`do lock ${tid}`)).error, 0, 'it is locked by the id of a thread');
  t.equal((await client.say(`do state ${app.pid}`)).value, STATE.locked, 'and says so');
  await app.stands('and stands');
  t.equal((await client.say(`do checkpoint ${app.pid}`)).error, 0, 'it is checkpointed');
  t.equal((await client.say(`do state ${app.pid}`)).value, STATE.checkpointed, 'and says so');
  t.equal((await client.say(`do restore ${app.pid}`)).error, 0, 'it is restored');
  t.equal((await client.say(`do unlock ${app.pid}`)).error, 0, 'and unlocked');
  await app.runs('and runs on, with its memory');

  t.match(
    await client.say(`do unlock ${app.pid}`),
    { error: ERRNO.EREMOTEIO },
    'what makes no sense is refused by the driver',
  );
  t.match(await client.say('do state 4194303'), { error: ERRNO.ESRCH }, 'there is no such process');
  t.match(
    await client.say(`do restore-tid ${process.pid}`),
    { error: ERRNO.EREMOTEIO },
    'a process without CUDA has no restore thread',
  );
  t.match(await client.say(`do lock ${process.pid}`), { error: ERRNO.EREMOTEIO }, 'and cannot be locked');
  t.ok((await client.say(`do shim ${app.pid}`)).error < 0, 'nor has this one a shim');

  const short = spawn('sleep', ['0.05'], { stdio: 'ignore' });
  await new Promise((resolve) => short.once('close', resolve));
  t.match(await client.say(`do state ${short.pid}`), { error: ERRNO.ESRCH }, 'a process that has ended is none');
  t.match(
    await statusOf(pool),
    { actions: { lock: { ok: 1, failed: 1 }, unlock: { ok: 1, failed: 1 }, checkpoint: { ok: 1, failed: 0 } } },
    'the report counts them',
  );
});

t.test('16 clients at once', async (t) => {
  const soft = softCuda(t);
  const pool = await startPool(t, soft);
  const apps = await Promise.all(Array.from({ length: 4 }, () => startApp(t, programs, soft)));
  await runTap(t, join(programs, 'load'), [pool.socket, '16', '40', ...apps.map((app) => String(app.pid))]);
  for (const app of apps) await app.runs(`application ${app.pid} runs on, with its memory`);
  t.match(await statusOf(pool), { held_count: 0, worker: { replaced: 0 }, errors: [] }, 'nothing is held');
});

t.test('400 checkpoints and restores', async (t) => {
  const { pool, app } = await startStage(t, programs);
  await runTap(t, join(programs, 'load'), [pool.socket, '1', '100', String(app.pid)], {}, '100 to warm up');
  const before = await statusOf(pool);
  await runTap(t, join(programs, 'load'), [pool.socket, '1', '300', String(app.pid)], {}, '300 more');
  const after = await statusOf(pool);
  t.equal(after.descriptors, before.descriptors, 'the keeper has no more descriptors open');
  t.equal(after.worker.descriptors, before.worker.descriptors, 'nor has the worker');
  t.match(after, { worker: { contexts: before.worker.contexts, replaced: 0 } }, 'and it has the contexts that it had');
  await app.runs('the application runs on, with its memory');
  // A sanitizer keeps freed memory back on purpose.
  if (process.env.CUDAPOOL_TEST_DAEMON !== undefined) return;
  t.ok(
    after.memory_kb - before.memory_kb <= 256,
    `the keeper has not grown (${before.memory_kb} to ${after.memory_kb} KiB)`,
  );
  t.ok(
    after.worker.memory_kb - before.worker.memory_kb <= 512,
    `nor has the worker (${before.worker.memory_kb} to ${after.worker.memory_kb} KiB)`,
  );
});
