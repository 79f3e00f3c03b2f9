// SPDX-License-Identifier: MIT
// An unpatched CRIU and plugin get the warm pool, too, when the drop-in is the first cuda-checkpoint in PATH.
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { PRETEND_GPU } from '../../harness/adapters/criu.ts';
import { type CriuRun, criuDump, criuRestore } from '../../harness/adapters/criu-run.ts';
import { exec } from '../../harness/adapters/exec.ts';
import { chooseCriu, withStockPlugin } from '../../harness/container/criu-tree.ts';
import { built, isRoot, skipUnless, softCuda, startPool, tempDir, until } from '../support/index.ts';
import { startApplication } from './application.ts';

function stockCriu() {
  try {
    return withStockPlugin(chooseCriu(process.env.CUDAPOOL_TEST_CRIU));
  } catch {
    return undefined;
  }
}

t.test('dump and restore by way of the drop-in and the pool', async (t) => {
  const criu = stockCriu();
  if (!skipUnless(t, isRoot, 'CRIU needs root')) return;
  if (!skipUnless(t, criu, 'no CRIU is built: cudapool build') || criu === undefined) return;
  const soft = softCuda(t);
  const pool = await startPool(t, soft);
  const app = await startApplication(t, soft);
  const dir = tempDir(t);
  const log = join(dir, 'dropin.log');
  const criuWith = (images: string, env: Record<string, string>): CriuRun => {
    mkdirSync(images, { recursive: true });
    return {
      binary: criu.binary,
      plugins: criu.plugins,
      images,
      timeoutMs: 60_000,
      env: { ...soft.env, CUDAPOOL_CONFIG: '/dev/null', ...PRETEND_GPU, CUDAPOOL_SOCKET: pool.socket, ...env },
    };
  };
  /** Only the drop-in: the stock tool is not even there. */
  const only = {
    PATH: `${dirname(built.dropin)}:/usr/sbin:/usr/bin:/sbin:/bin`,
    CUDAPOOL_LOG: '3',
    CUDAPOOL_LOG_FILE: log,
    CUDAPOOL_START: '0',
  };

  for (const seed of [11, 12]) {
    const run = criuWith(join(dir, `images-${seed}`), only);
    await app.fill(seed);
    await criuDump(run, app.pid);
    await until('the application is gone', app.gone);
    await criuRestore(run);
    await app.holds(seed, `round ${seed - 10}: the memory is as before`);
  }
  const logged = readFileSync(log, 'utf8');
  for (const op of [1, 2, 3, 4, 5, 6]) t.match(logged, `action ${op} `, `op ${op} went through the pool`);
  t.notMatch(readFileSync(log, 'utf8'), /without the pool/);

  // The pool goes away between dump and restore.
  const images = join(dir, 'images-without');
  await app.fill(13);
  await criuDump(criuWith(images, only), app.pid);
  await until('the application is gone', app.gone);
  await pool.stop();
  const stockTool = `${dirname(built.dropin)}:${built.softcudaBin}:/usr/sbin:/usr/bin:/sbin:/bin`;
  await criuRestore(criuWith(images, { ...only, PATH: stockTool }));
  await app.holds(13, 'the stock tool restores what the pool checkpointed');
  t.match(readFileSync(log, 'utf8'), /without the pool, through/, 'and the log says so');
});

t.test('an application with the shim is parked, and gets its memory back when CRIU lets it run', async (t) => {
  const criu = stockCriu();
  if (!skipUnless(t, isRoot, 'CRIU needs root')) return;
  if (!skipUnless(t, criu && existsSync(built.shim), 'CRIU or the shim is not built: cudapool build')) return;
  if (criu === undefined) return;
  const soft = softCuda(t);
  const dir = tempDir(t);
  const own = join(dir, 'own');
  const options = { env: { CUDAPOOL_IMAGE_DIR: own }, socket: join(dir, 'pool.sock') };
  let pool = await startPool(t, soft, options);
  const app = await startApplication(t, soft, { LD_PRELOAD: built.shim, CUDAPOOL_PARK_MIN_KB: '64' });
  const env = {
    ...soft.env,
    CUDAPOOL_CONFIG: '/dev/null',
    ...PRETEND_GPU,
    CUDAPOOL_SOCKET: options.socket,
    CUDAPOOL_START: '0',
    // NVIDIA's tool is there as well, and must not get to restore what it knows only a part of.
    PATH: `${dirname(built.dropin)}:${built.softcudaBin}:/usr/sbin:/usr/bin:/sbin:/bin`,
  };
  const criuWith = (images: string): CriuRun => {
    mkdirSync(images, { recursive: true });
    return { binary: criu.binary, plugins: criu.plugins, images, timeoutMs: 60_000, env };
  };
  const images = (): number => readdirSync(own).filter((name) => /^cudapool-[0-9a-f]{32}\.img$/.test(name)).length;

  for (const seed of [21, 22]) {
    const run = criuWith(join(dir, `images-${seed}`));
    await app.fill(seed);
    await criuDump(run, app.pid);
    await until('the application is gone', app.gone);
    t.equal(images(), seed - 20, "its image is in the pool's own directory");
    await criuRestore(run);
    await app.holds(seed, 'the memory is as before');
  }

  const run = criuWith(join(dir, 'images-without'));
  await app.fill(23);
  await criuDump(run, app.pid);
  await until('the application is gone', app.gone);
  await pool.stop();
  await criuRestore(run);
  const log = readFileSync(join(run.images, 'restore.log'), 'utf8');
  t.match(log, /the GPU memory of process \d+ is parked, which only a pool can map back/, 'the drop-in refuses');
  pool = await startPool(t, soft, options);
  const toggle = ['--toggle', '--pid', String(app.pid)];
  t.match(await exec(built.dropin, toggle, { timeoutMs: 30_000, reject: false, env }), { exitCode: 0, stderr: '' });
  await app.holds(23, 'with a pool it can be restored later');
  await pool.stop();
});
