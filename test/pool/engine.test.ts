// SPDX-License-Identifier: MIT
// The image engine: its format against everything that is not quite right, GPU memory there and back, and how fast.
import { closeSync, mkdirSync, openSync, statSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { buildSnippets, built, inRoot, runTap, softCuda, tempDir } from '../support/index.ts';

const programs = await buildSnippets('pool');

/** These programs only, in a folder of their own. */
async function sanitized(...names: string[]): Promise<string> {
  const out = inRoot('build', 'c', 'engine-sanitize');
  mkdirSync(out, { recursive: true });
  const vars = [`OUT=${out}`, 'WERROR=1', 'SANITIZE=address,undefined', ...names.map((name) => join(out, name))];
  await exec('flock', [join(out, '.lock'), 'make', '-s', '-C', inRoot('test', 'pool'), ...vars], {
    timeoutMs: 120_000,
  });
  return out;
}

const gpu = (t: Test): Record<string, string> => softCuda(t, { SOFTCUDA_DEVICES: '2', SOFTCUDA_MEMORY_MB: '2048' }).env;

t.test('checksums and images, with the sanitizers', async (t) => {
  const out = await sanitized('checksum', 'image');
  for (const name of ['checksum', 'image']) await runTap(t, join(out, name), [], { UBSAN_OPTIONS: 'halt_on_error=1' });
});

t.test('large images are checked at once', async (t) => {
  await runTap(t, join(programs, 'image'), ['time']);
});

t.test('GPU memory there and back', async (t) => {
  await runTap(t, join(programs, 'engine'), [], gpu(t));
});

t.test('the same with the sanitizers', async (t) => {
  await runTap(t, join(await sanitized('engine'), 'engine'), [], {
    ...gpu(t),
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
  });
});

t.test("the worker's jobs", async (t) => {
  await runTap(t, join(programs, 'jobs'), [built.cudapoold], gpu(t));
});

t.test('--inspect and --verify', async (t) => {
  const file = join(tempDir(t), 'cudapool-0.img');
  const stored = Number((await exec(join(programs, 'image'), ['write', file], { timeoutMs: 10_000 })).stdout);
  const look = async (how: string, of = file): Promise<{ status: number; said: Record<string, unknown> }> => {
    const ran = await exec(built.cudapoold, [how, of], {
      timeoutMs: 10_000,
      reject: false,
      env: { LD_LIBRARY_PATH: undefined },
    });
    return { status: ran.exitCode ?? -1, said: JSON.parse(ran.stdout) as Record<string, unknown> };
  };
  t.match(
    await look('--inspect'),
    {
      status: 0,
      said: {
        error: 0,
        token: Buffer.from('0123456789abcdef').toString('hex'),
        process: 'python3',
        pid: 4711,
        version: 1,
        pieces: 5,
        rdma_pieces: 1,
        bytes: 14_221_312,
        file_bytes: statSync(file).size,
        created: '1970-01-01T00:00:00Z',
        devices: [
          { pieces: 3, left_bytes: 1 },
          { pieces: 2, left_bytes: 2 },
        ],
      },
    },
    'an image says what it is, without a driver',
  );
  t.match(await look('--verify'), { status: 0, said: { error: 0, verified: true } }, 'and is verified');

  const fd = openSync(file, 'r+');
  writeSync(fd, 'X', stored + 12345);
  closeSync(fd);
  t.match(await look('--inspect'), { status: 0, said: { error: 0 } }, 'inspecting does not read the blocks');
  t.match(
    await look('--verify'),
    { status: 1, said: { error: -74, text: /block 1 of piece 0 is not as it was written/ } },
    'a changed byte is found',
  );
  truncateSync(file, statSync(file).size - 1);
  t.match(await look('--inspect'), { status: 1, said: { text: /cut off/ } }, 'so is one that is missing');
  t.match(await look('--verify', '/dev/zero'), { status: 1, said: { text: /no image/ } }, 'a device is no image');
  t.match(await look('--inspect', `${file}.gone`), { status: 1, said: { text: /opened/ } }, 'nor is nothing');
});

// Once more, where other work got in the way.
t.test('nearly as fast as memcpy', async (t) => {
  const env = softCuda(t, { SOFTCUDA_MEMORY_MB: '2048' }).env;
  const measure = async (): Promise<number | undefined> => {
    const ran = await exec(join(programs, 'engine_speed'), ['2'], { reject: false, env, timeoutMs: 60_000 });
    t.comment(ran.stdout);
    return ran.exitCode;
  };
  t.equal((await measure()) && (await measure()), 0, 'saving and loading reach 0.7 of a parallel memcpy');
});
