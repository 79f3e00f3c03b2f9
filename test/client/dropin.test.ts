// SPDX-License-Identifier: MIT
// The drop-in cuda-checkpoint: through a pool, through one that it starts itself, and without any.
import { spawn } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import {
  buildSnippets,
  built,
  type Pool,
  type SoftCuda,
  softCuda,
  startPool,
  tempDir,
  until,
} from '../support/index.ts';
import { startApplication } from './application.ts';

const TOOL = 'cuda-checkpoint';

/** Runs a cuda-checkpoint as CRIU's plugin does; the environment is this test's own. */
const run = (args: readonly string[], env: Record<string, string | undefined>, tool = built.dropin) =>
  exec(tool, args, { timeoutMs: 30_000, reject: false, env: { CUDAPOOL_CONFIG: '/dev/null', ...env } });

/** A folder with a cuda-checkpoint that says that it was executed. */
function fakeTool(t: Test, exitCode = 0): string {
  const dir = tempDir(t);
  const tool = join(dir, TOOL);
  writeFileSync(tool, `#!/bin/sh\necho "other: $*"\nexit ${exitCode}\n`);
  chmodSync(tool, 0o755);
  return dir;
}

t.test('what it says of itself', async (t) => {
  const help = await run(['-h'], {});
  t.match(help, { exitCode: 0, stderr: '' });
  t.match(help.stdout.slice(0, 2047), '--action', "CRIU's plugin looks for it in the first 2047 bytes");
  for (const flag of ['--get-state', '--get-restore-tid', '--toggle', '--timeout', '--pid']) t.match(help.stdout, flag);
  t.match(await run(['--version'], {}), { exitCode: 0, stderr: '', stdout: /^cuda-checkpoint \(cudapool \d/ });
});

t.test('usage errors name the mistake', async (t) => {
  const PATH = tempDir(t);
  const table: [string[], RegExp][] = [
    [[], /one of --get-state/],
    [['--get-state'], /--pid is missing/],
    [['--pid', '1'], /one of --get-state/],
    [['--get-state', '--toggle', '--pid', '1'], /one of --get-state/],
    [['--get-state', '--pid'], /--pid needs a value/],
    [['--get-state', '--pid', '0'], /not '0'/],
    [['--get-state', '--pid', '12x'], /not '12x'/],
    [['--get-state', '--pid', '99999999999'], /not '99999999999'/],
    [['--action', 'frob', '--pid', '1'], /not 'frob'/],
    [['--action', 'lock', '--pid', '1', '--timeout', '-1'], /--timeout takes milliseconds, not '-1'/],
    [['--get-state', '--pid', '1', 'more'], /'more' is one argument too many/],
    [['--frob'], /does not know '--frob'/],
  ];
  for (const [args, says] of table) {
    t.match(await run(args, { PATH }), { exitCode: 1, stdout: '', stderr: says }, args.join(' ') || 'no argument');
  }
});

t.test('without a pool', async (t) => {
  const other = fakeTool(t, 7);
  const dir = tempDir(t);
  const none = { CUDAPOOL_SOCKET: join(dir, 'none.sock'), CUDAPOOL_START: '0' };
  const args = ['--get-state', '--pid', '1'];
  const dropins = dirname(built.dropin);

  t.match(
    await run(args, { ...none, PATH: `${dropins}:${other}` }),
    { exitCode: 7, stdout: /^other: --get-state --pid 1\s*$/, stderr: '' },
    'the next one in PATH is executed, and nothing else is said',
  );

  const log = join(dir, 'log');
  await run(args, { ...none, PATH: other, CUDAPOOL_LOG_FILE: log });
  t.match(readFileSync(log, 'utf8'), new RegExp(`without the pool, through ${other}/cuda-checkpoint: .*none.sock`));

  t.match(
    await run(args, { ...none, PATH: dropins }),
    { exitCode: 1, stdout: '', stderr: /none\.sock.*systemctl start.*no other cuda-checkpoint/ },
    'it never executes itself',
  );

  const copies = ['a', 'b'].map((name) => join(dir, name));
  for (const copy of copies) {
    mkdirSync(copy);
    copyFileSync(built.dropin, join(copy, TOOL));
  }
  mkdirSync(join(dir, 'link'));
  symlinkSync(built.dropin, join(dir, 'link', TOOL));
  const crowded = [...copies, join(dir, 'link'), '', dropins].join(':');
  t.match(await run(args, { ...none, PATH: crowded }), { exitCode: 1, stderr: /no other/ }, 'copies do not go round');
  t.match(await run(args, { ...none, PATH: `${crowded}:${other}` }), { exitCode: 7 }, 'and lead to the right one');

  t.match(
    await run(['--device-map', 'a=b', '--toggle', '--pid', '1'], { ...none, PATH: other }),
    { exitCode: 7, stdout: /^other: .*--device-map/ },
    'flags that the pool does not know are passed on',
  );
  t.match(
    await run(args, { ...none, PATH: tempDir(t), CUDAPOOL_START: '1' }),
    { exitCode: 1, stderr: /no cudapoold in PATH: set CUDAPOOL_DAEMON/ },
    'a daemon that is not there',
  );
  t.match(
    await run(args, { ...none, PATH: tempDir(t), CUDAPOOL_START: 'maybe' }),
    { exitCode: 1, stderr: /CUDAPOOL_START is 'maybe' \(environment\), allowed is 0 or 1/ },
    'a bad option',
  );
  const config = join(dir, 'cudapool.conf');
  writeFileSync(config, '# ours\nCUDAPOOL_SOKET=/x\n', { mode: 0o600 });
  t.match(
    await run(args, { PATH: tempDir(t), CUDAPOOL_CONFIG: config }),
    { exitCode: 1, stderr: /cudapool\.conf:2: there is no option 'CUDAPOOL_SOKET'; did you mean CUDAPOOL_SOCKET\?/ },
    'a corrupted configuration file',
  );
});

/** A pool that follows a script of fake_pool.h on each of `count` connections. */
async function fakePool(t: Test, script: string, count: number): Promise<string> {
  const out = await buildSnippets('client');
  const socket = join(tempDir(t), 'fake.sock');
  const child = spawn(join(out, 'client'), [socket, script, String(count)], { stdio: 'ignore' });
  t.teardown(() => child.kill('SIGKILL'));
  await until('the fake pool listens', () => existsSync(socket));
  return socket;
}

t.test('a pool that cannot be used', async (t) => {
  const PATH = fakeTool(t, 7);
  const log = join(tempDir(t), 'log');
  const state = ['--get-state', '--pid', '1'];

  let CUDAPOOL_SOCKET = await fakePool(t, 'closes-midway', 2);
  t.match(await run(state, { CUDAPOOL_SOCKET, PATH }), { exitCode: 7, stderr: '' }, 'a question is asked elsewhere');
  t.match(
    await run(['--action', 'restore', '--pid', '1'], { CUDAPOOL_SOCKET, PATH }),
    { exitCode: 1, stdout: '', stderr: /closed the connection/ },
    'but a step that may have been begun is not begun again',
  );

  for (const [script, says] of [
    ['other-version', /9\.9-fake speaks version 9, this client .* restart it/],
    ['refuses', /you are nobody/],
  ] as const) {
    CUDAPOOL_SOCKET = await fakePool(t, script, 1);
    const env = { CUDAPOOL_SOCKET, PATH, CUDAPOOL_LOG_FILE: log };
    t.match(
      await run(['--action', 'lock', '--pid', '1'], env),
      { exitCode: 7, stderr: '' },
      `${script}: done elsewhere`,
    );
    t.match(readFileSync(log, 'utf8'), says, 'and the log says why');
  }
});

const action = (name: string, pid: number) => ['--action', name, '--pid', String(pid)];

async function steps(t: Test, soft: SoftCuda, pool: Pool): Promise<void> {
  const env = { ...soft.env, CUDAPOOL_SOCKET: pool.socket, PATH: dirname(built.dropin) };
  const app = await startApplication(t, soft);
  const well = async (args: readonly string[], stdout: string | RegExp = '') =>
    t.match(await run(args, env), { exitCode: 0, stdout, stderr: '' }, args.join(' '));
  const state = (name: string) => well(['--get-state', '--pid', String(app.pid)], new RegExp(`^${name}\\s*$`));

  const stock = join(built.softcudaBin, TOOL);
  const restoreTid = ['--get-restore-tid', '--pid', String(app.pid)];
  const same = await run(restoreTid, soft.env, stock);
  await well(restoreTid, same.stdout);
  await state('running');
  const byThread = ['--get-state', '--pid', same.stdout.trim()];
  await well(byThread, /^running\s*$/);

  await app.fill(5);
  await well([...action('lock', app.pid), '--timeout', '5000']);
  await state('locked');
  await well(action('checkpoint', app.pid));
  await state('checkpointed');
  const worker = (await pool.status()) as { worker?: { pid?: number } };
  t.ok(worker, 'the pool answers meanwhile');
  await well(action('restore', app.pid));
  await well(action('unlock', app.pid));
  await state('running');
  await app.holds(5, 'the memory is as before');

  const toggle = ['--toggle', '--pid', String(app.pid)];
  await well(toggle);
  await state('checkpointed');
  await well(toggle);
  await app.holds(5, 'the memory is as before');
  await well(action('lock', app.pid));
  t.match(await run(toggle, env), { exitCode: 1, stdout: '', stderr: /use --action/ }, 'a locked one is not toggled');
  await well(action('unlock', app.pid));

  for (const args of [
    ['--get-restore-tid', '--pid', String(process.pid)],
    ['--get-state', '--pid', String(process.pid)],
    action('lock', process.pid),
    action('unlock', app.pid),
    action('restore', app.pid),
    action('checkpoint', app.pid),
    ['--get-state', '--pid', '4194303'],
  ]) {
    const [ours, theirs] = [await run(args, env), await run(args, soft.env, stock)];
    t.equal(ours.exitCode, theirs.exitCode, `${args.join(' ')}: exit code as the stock tool's`);
    t.equal(ours.stdout, theirs.stdout, 'and so is what it prints');
    t.not(ours.stderr, '', 'and it says why');
  }
}

t.test('through a pool', async (t) => {
  const soft = softCuda(t);
  const pool = await startPool(t, soft);
  await steps(t, soft, pool);

  t.test('a pool that is asked not to be used', async (t) => {
    const env = { ...soft.env, CUDAPOOL_SOCKET: pool.socket, PATH: fakeTool(t), CRIU_CUDA_CONTEXT_POOL: '0' };
    t.match(await run(['--get-state', '--pid', '1'], env), { exitCode: 0, stdout: /^other/ });
  });

  t.test('how long a question takes', async (t) => {
    const out = await buildSnippets('client');
    const app = await startApplication(t, soft);
    const { stdout } = await exec(join(out, 'rtt'), [pool.socket, String(app.pid), '500'], { timeoutMs: 20_000 });
    const times = JSON.parse(stdout) as Record<'median_us', number>;
    t.comment(stdout.trim());
    t.ok(times.median_us < 5000, 'far less than executing a tool that initialises the driver');
  });
});

t.test('through a pool that it starts', async (t) => {
  const soft = softCuda(t);
  const socket = join(tempDir(t), 'pool.sock');
  const app = await startApplication(t, soft);
  const env = { ...soft.env, CUDAPOOL_SOCKET: socket, CUDAPOOL_DAEMON: built.cudapoold, PATH: dirname(built.dropin) };
  t.teardown(() => exec(built.cudapoold, ['--stop', '--socket', socket], { timeoutMs: 10_000, reject: false }));
  const question = ['--get-state', '--pid', String(app.pid)];
  const answers = await Promise.all([run(question, env), run(question, env), run(question, env)]);
  for (const answer of answers)
    t.match(answer, { exitCode: 0, stdout: /^running\s*$/, stderr: '' }, 'all get an answer');
  const { stdout } = await exec(built.cudapoold, ['--status', '--socket', socket], { timeoutMs: 5000 });
  t.ok(JSON.parse(stdout), 'and one pool stays');
  await exec(built.cudapoold, ['--stop', '--socket', socket], { timeoutMs: 10_000 });
  await until('it ends', () => !existsSync(socket));
});
