// SPDX-License-Identifier: MIT
// A worker or a keeper that dies or hangs costs nobody anything.
import { spawn } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import {
  buildSnippets,
  isRoot,
  type Pool,
  runTap,
  skipUnless,
  softCuda,
  startPool,
  tempDir,
  until,
} from '../support/index.ts';
import {
  acting,
  ERRNO,
  fault,
  holdsNothing,
  type Scene,
  STATE,
  type Status,
  startApp,
  startClient,
  startScene,
  statusOf,
} from './support.ts';

const programs = await buildSnippets('pool');

t.jobs = 4; // each with a pool of its own
const STEPS = ['lock', 'checkpoint', 'restore', 'unlock'];

interface WorkerScene extends Scene {
  workerPid: number;
}

async function scene(t: Test, args: string[] = []): Promise<WorkerScene> {
  const started = await startScene(t, programs, { args });
  return { ...started, workerPid: (await statusOf(started.pool)).worker.pid };
}

const warmAgain = (pool: Pool, generation: number, limitMs = 10_000): Promise<Status> =>
  until(
    `worker ${generation} is warm`,
    async () => {
      const status = await statusOf(pool);
      return status.worker.state === 'warm' && status.worker.generation >= generation ? status : undefined;
    },
    limitMs,
    20,
  );

t.test('the worker is killed while it has nothing to do', async (t) => {
  const { pool, app, criu, workerPid } = await scene(t);
  process.kill(workerPid, 'SIGKILL');
  const status = await warmAgain(pool, 2);
  t.equal(status.worker.replaced, 1, 'it is replaced');
  t.match(status.errors[0]?.text, /signal 9/, 'and the report says how it died');
  t.match(
    await criu.say(`do state ${app.pid}`),
    { error: 0, generation: 2 },
    'the same connection is served by the new one',
  );
});

t.test('the worker is killed again and again', async (t) => {
  const { pool, criu, app } = await scene(t);
  for (let generation = 1; generation <= 4; generation++)
    process.kill((await warmAgain(pool, generation)).worker.pid, 'SIGKILL');
  t.equal((await warmAgain(pool, 5)).worker.replaced, 4, 'it is replaced each time');
  t.equal((await criu.say(`do state ${app.pid}`)).error, 0, 'and the pool works on');
});

t.test('the worker is stopped', async (t) => {
  const { pool, app, criu, workerPid } = await scene(t);
  process.kill(workerPid, 'SIGSTOP');
  t.match(
    await criu.say(`do state ${app.pid}`),
    { error: 0, generation: 2 },
    'what was asked of it meanwhile is answered by the next one',
  );
  t.match((await statusOf(pool)).errors[0]?.text, /did not answer/, 'and the report says why it was replaced');
});

for (const op of STEPS) {
  t.test(`the worker is killed during ${op}`, async (t) => {
    const { soft, pool, app, criu, workerPid } = await scene(t);
    for (const step of STEPS.slice(0, STEPS.indexOf(op))) await criu.say(`do ${step} ${app.pid}`);
    fault(soft, `${op}=hang:1500`);
    await criu.say(`begin ${op} ${app.pid}`);
    await acting(pool);
    process.kill(workerPid, 'SIGKILL');
    fault(soft, '');
    const answer = await criu.say('next');
    t.equal(answer.error, 0, 'the action succeeds all the same', answer);
    t.equal(answer.generation, 2, 'by way of the next worker');
    fault(soft, '');
    for (const step of STEPS.slice(STEPS.indexOf(op) + 1))
      t.equal((await criu.say(`do ${step} ${app.pid}`)).error, 0, `${step} follows`);
    await app.runs('the application runs on');
    t.equal((await statusOf(pool)).held_count, 0, 'and nothing is held');
  });
}

/** A pool on a driver that restores for so long (slowdriver.c), and a process that it believes to be checkpointed. */
async function slowScene(
  t: Test,
  restoreMs: number,
  args: string[] = [],
): Promise<Omit<WorkerScene, 'app'> & { pid: number }> {
  const soft = softCuda(t);
  const env = {
    CUDAPOOL_LIBCUDA: join(programs, 'slowdriver.so'),
    SLOWDRIVER_STATE: join(soft.dir, 'state'),
    SLOWDRIVER_RESTORE_MS: String(restoreMs),
  };
  const pool = await startPool(t, soft, { args: ['--log', '3', ...args], env });
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  const pid = child.pid as number;
  const criu = startClient(t, programs, pool.socket, 'criu');
  await criu.say('connect plugin');
  for (const op of ['lock', 'checkpoint']) t.equal((await criu.say(`do ${op} ${pid}`)).error, 0, op);
  return { soft, pool, pid, criu, workerPid: (await statusOf(pool)).worker.pid };
}

t.test('the driver completes what a killed worker began, and the state is not told before', async (t) => {
  // Longer than the limit of an action, and the question for longer than a silent worker is put up with.
  const { pool, pid, criu, workerPid } = await slowScene(t, 7500, ['--action-limit', '6']);
  await criu.say(`begin restore ${pid}`);
  await acting(pool);
  await sleep(1500);
  process.kill(workerPid, 'SIGKILL');
  t.match(await criu.say('next'), { error: 0, cu: 0, generation: 2 }, 'the restore succeeds all the same');
  const { worker, held } = await statusOf(pool);
  t.match(worker, { replaced: 1 }, 'the worker that waits for the answer is not taken for one that hangs');
  t.match(held, [{ pid, locked: true, checkpointed: false }], 'the process is locked');
  t.match(await criu.say(`do unlock ${pid}`), { error: 0, generation: 2 }, 'unlock follows');
  t.equal((await criu.say(`do state ${pid}`)).value, STATE.running, 'and it runs');
  t.equal((await statusOf(pool)).held_count, 0, 'and nothing is held');
});

t.test('a process ends, and the driver says that all went well', async (t) => {
  const { pool, pid, criu } = await slowScene(t, 1500);
  await criu.say(`begin restore ${pid}`);
  await acting(pool);
  process.kill(pid, 'SIGKILL');
  const answer = await criu.say('next');
  t.equal(answer.error, ERRNO.ESRCH, 'it fails: perhaps it was done to another process that got the number');
  t.match(answer.line, /ended during the restore.*--get-state/, 'and the answer says so');
  t.equal((await statusOf(pool)).held_count, 0, 'nothing is held');
});

t.test('an action hangs', async (t) => {
  const { soft, pool, app, criu } = await scene(t, ['--action-limit', '1']);
  const other = await startApp(t, programs, soft);
  await criu.say(`do lock ${app.pid}`);
  fault(soft, 'checkpoint=hang:4000@1');
  await criu.say(`begin checkpoint ${app.pid}`);
  await acting(pool);
  fault(soft, '');
  t.equal((await criu.say(`do state ${other.pid}`)).error, 0, 'others are served beside it');
  const answer = await criu.say('next');
  t.ok(answer.error < 0, 'it fails');
  t.match(answer.line, /the process is/, 'and the answer says in which state the process is');
  t.match(await warmAgain(pool, 2), { worker: { replaced: 1 } }, 'the worker was replaced');
  t.equal((await criu.say(`do state ${other.pid}`)).error, 0, 'the pool works on');
  await criu.kill();
  await app.runs('and the application too, once its restore thread is back', 20_000);
  await holdsNothing(t, pool, 'nothing is held');
});

t.test('a lock that an application does not grant in time is no hanging worker', async (t) => {
  const { soft, pool, app, criu, workerPid } = await scene(t);
  fault(soft, 'lock=600');
  const answer = await criu.say(`do lock ${app.pid} 200`);
  t.match(answer, { error: ERRNO.EREMOTEIO, cu: 600 }, "the driver's refusal comes through");
  t.match(answer.line, /cuCheckpointProcessLock: CUDA_ERROR_NOT_READY \(600\)/, 'with its name');
  const status = await statusOf(pool);
  t.match(status, { held_count: 0, worker: { pid: workerPid, replaced: 0 } }, 'nothing is held, and the worker stays');
});

t.test('the keeper is killed', async (t) => {
  const soft = softCuda(t);
  const first = await startPool(t, soft, { args: ['--log', '3'] });
  const { socket } = first;
  const locked = await startApp(t, programs, soft);
  const checkpointed = await startApp(t, programs, soft);
  const patient = await startApp(t, programs, soft);
  const leaving = startClient(t, programs, socket, 'criu');
  const staying = startClient(t, programs, socket, 'criu');
  await leaving.say('connect plugin');
  await staying.say('connect plugin');
  await leaving.say(`do lock ${locked.pid}`);
  await leaving.say(`do lock ${checkpointed.pid}`);
  await leaving.say(`do checkpoint ${checkpointed.pid}`);
  await staying.say(`do lock ${patient.pid}`);
  const { worker } = await statusOf(first);

  await first.kill();
  await leaving.kill();
  await until('the worker goes with it', () => {
    try {
      process.kill(worker.pid, 0);
      return false;
    } catch {
      return true;
    }
  });
  const second = await startPool(t, soft, { socket, args: ['--log', '3'] });
  t.match(await statusOf(second), { held_count: 3 }, 'the next one knows what is held');
  await locked.runs('what was locked for a dead CRIU runs on');
  await checkpointed.runs('what was checkpointed for it, too');
  await patient.stands('what a living CRIU holds is left alone');
  t.match(
    await statusOf(second),
    { held_count: 1, held: [{ pid: patient.pid, owner_pid: staying.pid }] },
    'and known to be its own',
  );
  await staying.say('close');
  await staying.say('connect plugin');
  t.equal((await staying.say(`do checkpoint ${patient.pid}`)).error, 0, 'which may go on when it connects again');
  await staying.kill();
  await patient.runs('and is cared for when it dies');
  await holdsNothing(t, second, 'nothing is held');
});

for (const op of ['lock', 'checkpoint']) {
  t.test(`the keeper is killed during ${op}`, async (t) => {
    const { soft, pool, app, criu } = await scene(t);
    if (op === 'checkpoint') await criu.say(`do lock ${app.pid}`);
    fault(soft, `${op}=hang:1500`);
    await criu.say(`begin ${op} ${app.pid}`);
    await acting(pool);
    await pool.kill();
    await criu.kill();
    const next = await startPool(t, soft, { socket: pool.socket });
    await app.runs('the application runs on');
    await holdsNothing(t, next, 'nothing is held');
  });
}

t.test('processes and threads', async (t) => {
  if (!skipUnless(t, isRoot, 'only root can choose the number of a process')) return;
  await runTap(t, join(programs, 'process'));
});

t.test('descriptors that go along with messages', (t) => runTap(t, join(programs, 'rights')));

t.test('the journal', (t) => runTap(t, join(programs, 'journal'), [tempDir(t)]));

t.test('a torn journal', async (t) => {
  const { pool, soft, app, criu } = await scene(t);
  await criu.say(`do lock ${app.pid}`);
  await pool.kill();
  await criu.kill();
  appendFileSync(`${pool.socket}.journal`, Buffer.from('torn in the middle of'));
  const next = await startPool(t, soft, { socket: pool.socket });
  await app.runs('hides nothing of what is whole');
  await holdsNothing(t, next, 'nothing is held');
});
