// SPDX-License-Identifier: MIT
// Parking from the application's side: a million random operations against a model, and very many allocations.
import { type ChildProcess, spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { startClient, statusOf } from '../pool/support.ts';
import { buildSnippets, built, sanitizedShim, softCuda, startPool, tempDir, until } from '../support/index.ts';

const out = await buildSnippets('park');
const OPERATIONS = Number(process.env.CUDAPOOL_TEST_OPERATIONS ?? 1_000_000);
/** Some ten seconds of them. */
const SANITIZED = 200_000;
/** 35 s where nothing else runs. */
const LIMIT_MS = 300_000;
const SEED = process.env.CUDAPOOL_TEST_SEED ?? `${randomInt(2 ** 31)}`;

/** model.c under this shim: one half of the operations on one device, the other half on two. */
async function model(t: Test, programs: string, shim: string, operations: number): Promise<void> {
  t.comment(`CUDAPOOL_TEST_SEED=${SEED} CUDAPOOL_TEST_OPERATIONS=${operations}`);
  for (const devices of ['1', '2']) {
    const env = {
      ...process.env,
      ...softCuda(t, { SOFTCUDA_DEVICES: devices }).env,
      LD_PRELOAD: shim,
      CUDAPOOL_PARK_MIN_KB: '64',
      SOFTCUDA_FAULTS:
        'cuMemCreate=2@150,cuMemMap=2@170,cuMemExportToShareableHandle=2@160,cuMemImportFromShareableHandle=2@190',
      // The runtime comes with the program, behind the shim; what a driver allocates once is no leak.
      ASAN_OPTIONS: 'detect_leaks=0:verify_asan_link_order=0',
      UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
    };
    const args = [SEED, `${Math.ceil(operations / 2)}`, '4'];
    await t.spawn(join(programs, 'model'), args, { env, timeout: LIMIT_MS }, `model, devices: ${devices}`);
  }
}

t.test(
  'random operations of many threads, parked and unparked meanwhile, against a model',
  { timeout: LIMIT_MS },
  async (t) => model(t, out, built.shim, OPERATIONS),
);

t.test('the same with sanitizers in the shim and the model', { timeout: LIMIT_MS }, async (t) => {
  const sanitize = 'address,undefined';
  const programs = await buildSnippets('park', { sanitize });
  await model(t, programs, await sanitizedShim(sanitize), Math.min(OPERATIONS, SANITIZED));
});

/** many.c with so many allocations. */
async function startMany(t: Test, env: Record<string, string>, count: number) {
  const child: ChildProcess = spawn(join(out, 'many'), [`${count}`], {
    env: { ...process.env, ...env, LD_PRELOAD: built.shim },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((resolve) => child.once('close', resolve));
  const end = async (): Promise<void> => {
    child.kill('SIGKILL');
    await ended;
  };
  t.teardown(end);
  let said = '';
  child.stdout?.on('data', (text) => {
    said += text;
  });
  await until('it has its memory', () => said !== '' || child.exitCode !== null, 60_000);
  t.equal(said, 'ready\n');
  return { pid: child.pid ?? 0, end };
}

t.test('10,000 allocations are parked in less than a second', async (t) => {
  const COUNT = 10_000;
  const MOST_MS = 1000;
  const soft = softCuda(t, { SOFTCUDA_MEMORY_MB: '24000' });
  const pool = await startPool(t, soft);
  const before = (await statusOf(pool)).descriptors;
  const criu = startClient(t, await buildSnippets('pool'), pool.socket, 'criu');
  await criu.say('connect plugin');
  const took: number[] = [];
  while (took.length < 3 && !took.some((ms) => ms < MOST_MS)) {
    const many = await startMany(t, soft.env, COUNT); // other tests have the processors, too: the best of three counts
    await criu.say(`images dump ${tempDir(t, '/dev/shm')}`);
    const began = performance.now();
    const parked = await criu.say(`do lock ${many.pid}`, 30_000);
    took.push(Math.round(performance.now() - began));
    t.match(parked, { error: 0, path: 1, parked: COUNT * 2 ** 21 }, parked.line);
    await many.end();
    await until('the pool lets go of what nobody can be given back', async () => {
      const { park_count, descriptors } = await statusOf(pool);
      return park_count === 0 && descriptors < before + 100;
    });
  }
  t.ok(Math.min(...took) < MOST_MS, `${took} ms`);
});
