// SPDX-License-Identifier: MIT
// `cudapool pool`, `status` and `options`: a pool of one's own, one that is absent, one of another version.
import { chmodSync, cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { IDLE_S } from '../../harness/container/pool-process.ts';
import { flatten } from '../../harness/status.ts';
import { cudapool, inRoot, isRoot, skipUnless, softCuda, startPool, tempDir } from '../support/index.ts';

interface Place {
  socket: string;
  env: Record<string, string>;
}

function place(t: import('tap').Test): Place {
  const dir = tempDir(t);
  const config = join(dir, 'cudapool.conf');
  writeFileSync(config, '');
  const socket = join(dir, 'pool.sock');
  return { socket, env: { ...softCuda(t).env, CUDAPOOL_CONFIG: config, CUDAPOOL_SOCKET: socket } };
}

const json = (text: string): Record<string, unknown> => JSON.parse(text) as Record<string, unknown>;

t.test('start, status, restart, stop', async (t) => {
  if (!skipUnless(t, isRoot, 'needs root')) return;
  const { env, socket } = place(t);
  t.teardown(() => cudapool(['pool', 'stop'], { env }));
  const started = await cudapool(['pool', 'start', '--idle', '60', '--json'], { env });
  t.equal(started.exitCode, 0, started.stderr);
  const first = json(started.stdout) as { status: { pid: number; socket: string } };
  t.match(first, { schema: 'cudapool.pool/1', was_running: false, running: true, status: { socket } });

  const again = await cudapool(['pool', 'start'], { env });
  t.same([again.exitCode, again.stdout], [0, '']);
  t.match(again.stderr, /running already/);

  const status = await cudapool(['status', '--json'], { env });
  t.match(json(status.stdout), { schema: 'cudapool.status/1', running: true, status: { pid: first.status.pid } });
  const shown = await cudapool(['status'], { env });
  t.match(shown.stdout, new RegExp(`^pool +process ${first.status.pid}, `, 'm'));
  t.match(shown.stdout, /^worker +(warm|starting): process \d+/m);
  t.match(shown.stdout, /^held +nothing$/m);

  const restarted = await cudapool(['pool', 'restart', '--json'], { env });
  const second = json(restarted.stdout) as typeof first;
  t.match(second, { was_running: true, running: true });
  t.not(second.status.pid, first.status.pid);

  const stopped = await cudapool(['pool', 'stop', '--json'], { env });
  t.match(json(stopped.stdout), { was_running: true, running: false, absent: true });
});

t.test('no pool', async (t) => {
  const { env, socket } = place(t);
  const status = await cudapool(['status'], { env });
  t.same([status.exitCode, status.stdout], [1, '']);
  t.match(status.stderr, /ERR_CUDAPOOL_NO_POOL/);
  t.match(status.stderr, /hint:.*cudapool pool start/);
  const asJson = await cudapool(['status', '--json'], { env });
  t.equal(asJson.exitCode, 1);
  t.match(json(asJson.stdout), { running: false, absent: true, why: socket });
  const stop = await cudapool(['pool', 'stop'], { env });
  t.equal(stop.exitCode, 0, 'to stop what is not there is no failure');
});

t.test('a pool that is not for everybody', async (t) => {
  if (!skipUnless(t, isRoot, 'needs root, to be somebody else')) return;
  const { env, socket } = place(t);
  for (const folder of [join(socket, '..'), env.SOFTCUDA_DIR ?? '']) chmodSync(folder, 0o755);
  await startPool(t, { dir: '', env }, { socket, env });
  const nobody = ['-u', 'NODE_OPTIONS', 'setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
  for (const command of [['status'], ['evict'], ['pool', 'stop']]) {
    const ran = await exec('env', [...nobody, inRoot('bin', 'cudapool'), ...command], {
      timeoutMs: 30_000,
      reject: false,
      env,
    });
    t.match(ran, { exitCode: 3, stderr: /permission denied[\s\S]*hint:.*sudo/ }, command.join(' '));
  }
});

t.test('something else listens there', async (t) => {
  const { env, socket } = place(t);
  const { createServer } = await import('node:net');
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  t.teardown(() => server.close());
  const status = await cudapool(['status', '--json'], { env });
  t.match(json(status.stdout), { running: false, absent: false });
  t.equal((await cudapool(['pool', 'start'], { env })).exitCode, 1, 'and it is not taken for no pool');
});

t.test('a pool of another version', async (t) => {
  if (!skipUnless(t, isRoot, 'needs root')) return;
  const dir = tempDir(t);
  for (const room of ['wire', 'pool', 'package.json']) {
    cpSync(inRoot(room), join(dir, room), { recursive: true, filter: (name) => !/\.(o|d)$|\/cudapoold$/.test(name) });
  }
  const message = join(dir, 'wire', 'message.h');
  const other = readFileSync(message, 'utf8').replace(/(CUDAPOOL_WIRE_VERSION) \d+/, '$1 99');
  writeFileSync(message, other);
  const pool = join(dir, 'pool');
  await exec('make', ['-C', pool, '-j2', 'CFLAGS=-O0', 'cudapoold'], {
    timeoutMs: 60_000,
    env: { MAKEFLAGS: undefined },
  });

  const { env, socket } = place(t);
  const old = await startPool(t, { dir: '', env }, { socket, env, daemon: join(pool, 'cudapoold') });
  const status = await cudapool(['status'], { env });
  t.equal(status.exitCode, 1);
  t.match(status.stderr, /version 99/);
  t.match(status.stderr, /hint:.*cudapool pool restart/);
  const start = await cudapool(['pool', 'start'], { env });
  t.equal(start.exitCode, 1);
  t.match(start.stderr, /ERR_CUDAPOOL_POOL_UNUSABLE/);
  t.equal(old.child.exitCode, null, 'nothing has happened to it');
  const restart = await cudapool(['pool', 'restart', '--json'], { env });
  t.teardown(() => cudapool(['pool', 'stop'], { env }));
  t.equal(restart.exitCode, 0, restart.stderr);
  t.match(json(restart.stdout), { was_running: true, running: true });
});

t.test('options', async (t) => {
  const { env } = place(t);
  const ran = await cudapool(['options', '--json'], { env: { ...env, CUDAPOOL_THREADS: '3' } });
  const { options } = json(ran.stdout) as { options: { environment: string; value: unknown; source: string }[] };
  const def = readFileSync(inRoot('wire', 'options.def'), 'utf8');
  t.same(
    options.map((option) => option.environment),
    [...def.matchAll(/^OPTION\(\w+, "(\w+)"/gm)].map((match) => match[1]),
    'all of the table, in its order',
  );
  t.match(
    options.find((option) => option.environment === 'CUDAPOOL_THREADS'),
    { value: 3, source: 'environment' },
  );
  const shown = await cudapool(['options'], { env });
  t.match(shown.stdout, /^CRIU_CUDA_CONTEXT_POOL=0$/m);
  const wrong = await cudapool(['options'], { env: { ...env, CUDAPOOL_THREADS: '0' } });
  t.equal(wrong.exitCode, 1);
  t.match(wrong.stderr, /CUDAPOOL_THREADS.*1 to 64/);
  t.match(wrong.stderr, /hint:/);
});

t.test('a pool that was started on demand ends after the same time, whoever started it', async (t) => {
  const [, plugins] = /CUDAPOOL_SPAWN_IDLE_S (\d+)/.exec(readFileSync(inRoot('wire', 'spawn.h'), 'utf8')) ?? [];
  t.equal(IDLE_S, Number(plugins));
});

t.test('docs/options.md is up to date', async (t) => {
  const { env } = place(t);
  const { stdout } = await cudapool(['options', '--markdown'], { env });
  t.equal(readFileSync(inRoot('docs', 'options.md'), 'utf8').trimEnd(), stdout.trimEnd());
});

t.test('no daemon', async (t) => {
  const ran = await cudapool(['status'], { env: { CUDAPOOL_DAEMON: '/nonexistent/cudapoold' } });
  t.equal(ran.exitCode, 3);
  t.match(ran.stderr, /ERR_CUDAPOOL_NOT_BUILT/);
});

t.test('flatten', (t) => {
  t.same(flatten({ a_b: { c: 1 }, d: [], e: ['x', 'y'], f: [{ g: null }], h: '' }), [
    ['a b c', '1'],
    ['d', '-'],
    ['e', 'x, y'],
    ['f 0 g', '-'],
    ['h', '-'],
  ]);
  t.end();
});
