// SPDX-License-Identifier: MIT
// workloads/gpu_app by itself, as a plain process on the software driver; and its kernels' PTX.
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { look } from '../../harness/adapters/exec.ts';
import { ask, expectedChecksum } from '../../harness/container/ask.ts';
import { built, inRoot } from '../../harness/paths.ts';
import { skipUnlessToolkit, softCuda, until } from '../support/index.ts';
import { WORDS_PER_MIB } from './support.ts';

const app = join(built.workloads, 'gpu_app');

async function start(
  t: Test,
  args: readonly string[],
): Promise<{ dir: string; child: ChildProcess; env: NodeJS.ProcessEnv }> {
  const dir = mkdtempSync(join(tmpdir(), 'cudapool-app-'));
  const env = { ...process.env, ...softCuda(t).env };
  const child = spawn(app, ['--dir', dir, ...args], { env, stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(async () => {
    child.kill('SIGKILL');
    await until('it ends', () => child.exitCode !== null || child.signalCode !== null);
    rmSync(dir, { recursive: true, force: true });
  });
  let said = '';
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  await until('READY', () => said.includes('READY\n') || child.exitCode !== null, 20_000);
  t.equal(said, 'READY\n', 'says READY and nothing else');
  return { dir, child, env };
}

for (const by of ['kernel', 'copy']) {
  t.test(`memory filled and read by ${by}`, async (t) => {
    const { dir } = await start(t, ['--memory=1', '--seed=7', `--by=${by}`]);
    const [first] = (await ask(dir)).answers;
    t.match(first, {
      index: 0,
      counter: 1,
      words: WORDS_PER_MIB,
      seed: 7,
      copies: by === 'copy',
      first_call_us: undefined,
    });
    t.equal(first?.checksum, expectedChecksum(WORDS_PER_MIB, 7));
    const [second] = (await ask(dir, { seed: 4000000000 })).answers;
    t.match(second, { counter: 2, seed: 4000000000 });
    t.equal(second?.checksum, expectedChecksum(WORDS_PER_MIB, 4000000000), 'filled anew');
  });
}

t.test('a tree, with created contexts and no memory, that uses CUDA when it is asked', async (t) => {
  const { dir, child } = await start(t, ['--processes=3', '--when=ask', '--api=create']);
  t.notMatch(
    readFileSync(`/proc/${child.pid}/maps`, 'utf8'),
    /softcuda\.|device-/,
    'no device before the first question',
  );
  const { answers } = await ask(dir, { processes: 3 });
  t.same(
    answers.map(({ index, words, checksum }) => [index, words, checksum]),
    [0, 1, 2].map((index) => [index, 0, '0'.repeat(16)]),
  );
  t.ok(
    answers.every(({ first_call_us }) => (first_call_us ?? 0) > 0),
    'each says what its first call took',
  );
  t.equal(new Set(answers.map(({ pid }) => pid)).size, 3);
  const again = await ask(dir, { processes: 3 });
  t.ok(again.answers.every(({ first_call_us }) => first_call_us === undefined));
  child.kill('SIGTERM');
  await until('SIGTERM ends it', () => child.exitCode === 0);
  await t.rejects(ask(dir, { timeoutMs: 50 }), { code: 'ERR_CUDAPOOL_NO_ANSWER' }, 'nobody is left who answers');
});

t.test('wrong options, and no driver', async (t) => {
  const cases: [string[], number, RegExp][] = [
    [[], 2, /^usage/],
    [['--dir=/tmp', '--frob'], 2, /unrecognized option/],
    [['--dir=/tmp', '--memory=x'], 1, /--memory: 'x' is not a number/],
    [['--dir=/tmp', '--processes=0'], 1, /from 1 to 64/],
    [['--dir=/tmp', '--when=never'], 1, /never.* is not known/],
  ];
  for (const [args, code, says] of cases) {
    const ran = await look(app, args, { reject: false });
    t.equal(ran.exitCode, code, args.join(' '));
    t.match(ran.stderr, says);
  }
  if (existsSync('/proc/driver/nvidia/gpus')) return;
  const ran = await look(app, ['--dir=/tmp'], { reject: false, env: { LD_LIBRARY_PATH: undefined } });
  t.equal(ran.exitCode, 1);
  t.match(ran.stderr, /no driver: libcuda\.so\.1/);
});

t.test('the kernels for real GPUs assemble', async (t) => {
  const ptxas = ['/usr/local/cuda/bin/ptxas', '/usr/bin/ptxas'].find((path) => existsSync(path));
  if (!skipUnlessToolkit(t, ptxas !== undefined, 'ptxas is not installed')) return;
  const dir = t.testdir();
  const source = join(dir, 'print.c');
  writeFileSync(
    source,
    `#include <stdio.h>\n#include "${inRoot('workloads', 'kernels.ptx.h')}"\nint main(void) { fputs(workload_ptx, stdout); }\n`,
  );
  await look('cc', ['-o', join(dir, 'print'), source]);
  writeFileSync(join(dir, 'kernels.ptx'), (await look(join(dir, 'print'), [])).stdout);
  const ran = await look(ptxas ?? '', ['-arch=sm_90', '-v', '-o', join(dir, 'cubin'), join(dir, 'kernels.ptx')]);
  for (const name of ['cudapool_fill', 'cudapool_checksum'])
    t.match(ran.stdout + ran.stderr, new RegExp(`function '${name}'`));
});
