// SPDX-License-Identifier: MIT
// Peers that may not, that break the protocol, and that want too much.
import { spawn } from 'node:child_process';
import { chmodSync, cpSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { buildSnippets, built, isRoot, runTap, skipUnless, softCuda, tempDir, until } from '../support/index.ts';
import { acting, ERRNO, fault, startClient, startStage, statusOf } from './support.ts';

const programs = await buildSnippets('pool');

t.jobs = 4; // each with a pool of its own

t.test('peers that break the rules', async (t) => {
  const { pool, app } = await startStage(t, programs);
  const before = await statusOf(pool);
  await runTap(t, join(programs, 'hostile'), [pool.socket, String(app.pid)]);
  await until('all are gone', async () => {
    const { connections, held_count } = await statusOf(pool);
    return connections.open === 1 && held_count === 0;
  });
  await app.runs('the application runs');
  const after = await statusOf(pool);
  t.equal(after.descriptors, before.descriptors, 'no descriptor is left behind');
  t.match(
    after,
    { pid: before.pid, held_count: 0, worker: { pid: before.worker.pid, replaced: 0 } },
    'keeper and worker are the same',
  );
  t.ok(after.connections.dropped > 20 && after.connections.refused > 100, 'they were counted');
});

t.test('who may connect', async (t) => {
  if (!skipUnless(t, isRoot, 'only root can be somebody else')) return;
  const soft = softCuda(t);
  // Its socket is open to all, so that it is the pool that decides.
  const socket = join(tempDir(t), 'pool.sock');
  const daemon = join(programs, 'activate');
  const child = spawn(
    daemon,
    [socket, '666', process.env.CUDAPOOL_TEST_DAEMON ?? built.cudapoold, '--group', 'games'],
    {
      env: { ...process.env, ...soft.env },
      stdio: 'ignore',
    },
  );
  t.teardown(() => child.kill('SIGTERM'));
  // The tree may be out of reach for others.
  const open = tempDir(t);
  chmodSync(open, 0o755);
  chmodSync(dirname(socket), 0o755);
  cpSync(join(programs, 'client'), join(open, 'client'));
  const as = async (...identity: string[]) => {
    const client = startClient(t, open, socket, 'client', ['setpriv', ...identity, '--']);
    const { line } = await client.say('connect tool');
    await client.kill();
    return line;
  };
  await until('the socket is there', async () => (await as('--reuid=0')).startsWith('welcome'));
  t.match(
    await as('--reuid=65534', '--regid=65534', '--clear-groups'),
    /^error -13 .*group/,
    'another user is refused, and told why',
  );
  t.match(await as('--reuid=65534', '--regid=60', '--clear-groups'), /^welcome/, 'the group may');
  t.match(await as('--reuid=65534', '--regid=65534', '--groups=100,60'), /^welcome/, 'also as one of many groups');
  t.match(await as('--reuid=65534', '--regid=65534', '--groups=100,12'), /^error -13/, 'others may not');
});

t.test('who asks and goes away', async (t) => {
  const { soft, pool, app } = await startStage(t, programs);
  const busy = startClient(t, programs, pool.socket);
  const client = startClient(t, programs, pool.socket);
  await busy.say('connect tool');
  fault(soft, 'lock=hang:4000');
  await busy.say(`begin lock ${app.pid}`);
  t.ok(await acting(pool), 'one action is under way, and all others wait for it');
  const before = await statusOf(pool);
  for (let round = 0; round < 12; round++) {
    await client.say('connect tool');
    await Promise.all(Array.from({ length: 60 }, () => client.say(`begin state ${app.pid}`)));
    await client.say('close');
  }
  const gone = async () => {
    const { actions, descriptors } = await statusOf(pool);
    return actions.running === 1 && actions.queued === 0 && descriptors === before.descriptors;
  };
  t.ok(await until('they are gone', gone, 1500).catch(() => false), 'what 12 connections left behind is dropped');
  t.equal((await busy.say('next')).error, 0, 'what was under way is not');
});

t.test('who lives in another pid namespace', async (t) => {
  if (!skipUnless(t, isRoot, 'only root can make one')) return;
  const { pool, app } = await startStage(t, programs);
  const inside = startClient(t, programs, pool.socket, 'client', ['unshare', '--pid', '--fork', '--kill-child', '--']);
  t.match((await inside.say('connect tool')).line, /^welcome/, 'may ask how the pool is');
  const refused = await inside.say(`do state ${app.pid}`);
  t.match(refused, { error: ERRNO.EPERM }, 'but not name a process');
  t.match(refused.line, /another pid namespace.*on the host/, 'and is told what to do');
  await inside.say('close');
  for (const role of ['plugin', 'dropin'])
    t.match(
      (await inside.say(`connect ${role}`)).line,
      /^error -1 .*another pid namespace.*on the host/,
      `a ${role} is refused at once`,
    );
});
