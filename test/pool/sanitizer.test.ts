// SPDX-License-Identifier: MIT
// The pool built with the sanitizers: hostile peers, load, dying workers and owners, and nothing leaked at the end.
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { buildSnippets, inRoot, runTap, softCuda, startPool, tempDir, until } from '../support/index.ts';
import { startApp, startClient, statusOf } from './support.ts';

t.test('under the sanitizers', async (t) => {
  const programs = await buildSnippets('pool');
  const out = inRoot('build', 'c', 'cudapoold-sanitize');
  mkdirSync(out, { recursive: true });
  const vars = [`OUT=${out}`, 'WERROR=1', 'SANITIZE=address,undefined', join(out, 'cudapoold')];
  await exec('flock', [join(out, '.lock'), 'make', '-s', '-C', inRoot('pool'), ...vars], { timeoutMs: 180_000 });

  const soft = softCuda(t);
  const logs = tempDir(t);
  const pool = await startPool(t, soft, {
    daemon: join(out, 'cudapoold'),
    env: {
      ASAN_OPTIONS: `log_path=${join(logs, 'asan')}:detect_leaks=1`,
      UBSAN_OPTIONS: `log_path=${join(logs, 'ubsan')}:print_stacktrace=1`,
    },
  });
  const app = await startApp(t, programs, soft);
  await runTap(t, join(programs, 'load'), [pool.socket, '16', '10', String(app.pid)]);
  await runTap(t, join(programs, 'hostile'), [pool.socket, String(app.pid)]);

  const criu = startClient(t, programs, pool.socket, 'criu');
  await criu.say('connect plugin');
  await criu.say(`do lock ${app.pid}`);
  await criu.say(`begin checkpoint ${app.pid}`);
  process.kill((await statusOf(pool)).worker.pid, 'SIGKILL');
  await criu.kill();
  await app.runs('the application runs on after worker and CRIU were killed');
  await until('nothing is held', async () => (await statusOf(pool)).held_count === 0);

  for (const mode of ['honest', 'more-descriptors', 'size-huge', 'go-close', 'unpark-fails-once', 'die']) {
    const parked = await startApp(t, programs, soft, ['shim', mode, '70']);
    const dump = startClient(t, programs, pool.socket, 'criu');
    await dump.say('connect plugin');
    await dump.say(`images dump ${tempDir(t)}`);
    for (const op of ['lock', 'checkpoint', 'restore', 'unlock', 'unpark', 'lock', 'checkpoint'])
      await dump.say(`do ${op} ${parked.pid}`);
    await dump.kill();
    if (mode !== 'die') await parked.runs(`an application runs on that was parked: ${mode}`);
    parked.child.kill('SIGKILL');
  }
  await until('nothing is held', async () => (await statusOf(pool)).held_count === 0);
  await pool.stop();
  t.equal(pool.child.exitCode, 0, 'the pool ends well, without a leak');
  const reports = readdirSync(logs).map((name) => readFileSync(join(logs, name), 'utf8'));
  t.same(reports, [], 'and no sanitizer said anything');
});
