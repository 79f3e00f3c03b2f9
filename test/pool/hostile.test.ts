// SPDX-License-Identifier: MIT
// Peers that may not, that break the protocol, and that want too much.
import { spawn } from 'node:child_process';
import { chmodSync, cpSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import {
  buildSnippets,
  built,
  isRoot,
  runTap,
  skipUnless,
  softCuda,
  startPool,
  tempDir,
  until,
} from '../support/index.ts';
import { startApp, startClient, statusOf } from './support.ts';

const programs = await buildSnippets('pool');

t.jobs = 4; // each with a pool of its own

t.test('peers that break the rules', async (t) => {
  const soft = softCuda(t);
  const pool = await startPool(t, soft);
  const app = await startApp(t, programs, soft);
  const before = await statusOf(pool);
  await runTap(t, join(programs, 'hostile'), [pool.socket, String(app.pid)]);
  await until('all are gone', async () => (await statusOf(pool)).connections.open === 1);
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
