// SPDX-License-Identifier: MIT
// How a pool starts, is found fit or not, and ends.
import { spawn } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  lchownSync,
  linkSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { type ExecResult, exec } from '../../harness/adapters/exec.ts';
import {
  buildSnippets,
  built,
  inRoot,
  isRoot,
  skipUnless,
  softCuda,
  startPool,
  tempDir,
  until,
} from '../support/index.ts';
import { ERRNO, startApp, startClient, statusOf } from './support.ts';

const programs = await buildSnippets('pool');

t.jobs = 4; // each with a pool of its own
const daemon = process.env.CUDAPOOL_TEST_DAEMON ?? built.cudapoold;

/** Runs cudapoold to its end. */
const run = (args: string[], env: Record<string, string | undefined> = {}): Promise<ExecResult> =>
  exec(daemon, args, { timeoutMs: 15_000, reject: false, env: { CUDAPOOL_CONFIG: undefined, ...env } });

/** Ends what was started with --daemonize. */
function endAfter(t: Test, socket: string): void {
  t.teardown(async () => {
    await run(['--stop', '--socket', socket]);
  });
}

t.test('the command line', async (t) => {
  for (const args of [
    ['--nonsense'],
    ['what'],
    ['--status', '--stop'],
    ['--socket'],
    ['--socket', ''],
    ['--shim', 'x'],
  ]) {
    const { exitCode, stderr } = await run(args);
    t.equal(exitCode, 2, `${args.join(' ')}: wrong usage`);
    t.match(stderr, /cudapoold/, 'with a word about it');
  }
  t.match(
    await run(['--threads', '65']),
    { exitCode: 2, stderr: /CUDAPOOL_THREADS.*64/s },
    'a value out of bounds names them',
  );
  t.match(await run(['--help']), { exitCode: 0, stdout: /Examples/, stderr: '' }, 'help has examples');
  t.match(
    await run(['--version']),
    { exitCode: 0, stdout: /^cudapoold \d+\.\d+\.\d+ [0-9a-f]{16}\n?$/ },
    'version and build',
  );
  const { stdout } = await run(['--options', '--idle', '7'], { CUDAPOOL_THREADS: '3' });
  const options = JSON.parse(stdout) as { name: string; value: unknown; source: string }[];
  t.match(
    options.find((o) => o.name === 'idle_s'),
    { value: 7 },
    'a flag counts',
  );
  t.match(
    options.find((o) => o.name === 'threads'),
    { value: 3, source: 'environment' },
    'the environment counts',
  );
  const config = join(tempDir(t), 'cudapool.conf');
  writeFileSync(config, 'CUDAPOOL_THREADS=many\n');
  t.match(
    await run(['--status'], { CUDAPOOL_CONFIG: config }),
    { exitCode: 2, stderr: /CUDAPOOL_THREADS/ },
    'a corrupted file is named',
  );
  const nobody = join(tempDir(t), 'pool.sock');
  t.match(await run(['--status', '--socket', nobody]), { exitCode: 1, stderr: /no pool/ }, 'no pool, no status');
  t.match(await run(['--stop', '--socket', nobody]), { exitCode: 1, stderr: /no pool/ }, 'nor anything to stop');
  t.match(await run(['--shim', '1']), { exitCode: 1, stdout: /"shim":false/ }, 'init has no shim');
});

t.test('in the background', async (t) => {
  const soft = softCuda(t);
  const socket = join(tempDir(t), 'pool.sock');
  endAfter(t, socket);
  t.equal((await run(['--daemonize', '--socket', socket], soft.env)).exitCode, 0, 'it starts');
  t.equal((await run(['--status', '--socket', socket])).exitCode, 0, 'and accepts as soon as the command returns');
  t.match(
    await run(['--daemonize', '--socket', socket], soft.env),
    { exitCode: 1, stderr: /a pool \(process \d+\) serves .* already/ },
    'a second one on the same socket is refused, and names the first',
  );
  t.equal((await run(['--status', '--socket', socket])).exitCode, 0, 'which it does not harm');
  t.equal((await run(['--stop', '--socket', socket])).exitCode, 0, 'it ends when asked to');
  t.notOk(existsSync(socket), 'and takes the socket with it');
  t.equal((await run(['--daemonize', '--socket', socket], soft.env)).exitCode, 0, 'so that another can start at once');
});

t.test('while it holds a process', async (t) => {
  const soft = softCuda(t);
  const pool = await startPool(t, soft);
  const app = await startApp(t, programs, soft);
  const criu = startClient(t, programs, pool.socket, 'criu');
  await criu.say('connect plugin');
  await criu.say(`do lock ${app.pid}`);
  t.match(
    await run(['--stop', '--socket', pool.socket]),
    { exitCode: 1, stderr: /holds 1 process/ },
    'it does not stop',
  );
  await pool.stop();
  await criu.kill();
  await app.stands('terminated, it leaves what a living CRIU holds as it is');
  await startPool(t, soft, { socket: pool.socket });
  await app.runs('for the next pool to see to');
});

t.test('the socket', async (t) => {
  const soft = softCuda(t);
  const pool = await startPool(t, soft, { args: ['--group', 'games'] });
  const mode = statSync(pool.socket);
  t.equal(mode.mode & 0o777, 0o660, 'is open to its owner and group');
  if (isRoot) t.equal(mode.gid, 60, 'which is the one asked for');
  await pool.kill();
  t.ok(existsSync(pool.socket), 'a killed pool leaves it behind');
  const lock = (): number => statSync(`${pool.socket}.lock`).mode & 0o777;
  t.equal(lock(), 0o600, 'nobody else may take its lock');
  chmodSync(`${pool.socket}.lock`, 0o644);
  const next = await startPool(t, soft, { socket: pool.socket, args: ['--group', 'no such group'] });
  t.match(await statusOf(next), { worker: { state: 'warm' } }, 'and the next one replaces it');
  t.equal(lock(), 0o600, 'also where it could');
  t.equal(statSync(pool.socket).mode & 0o777, 0o600, 'without a group it is open to its owner alone');

  const dir = tempDir(t);
  writeFileSync(join(dir, 'file.sock'), '');
  t.match(
    await run(['--socket', join(dir, 'file.sock')]),
    { exitCode: 1, stderr: /no socket/ },
    'a file in its place is left alone',
  );
  t.ok(existsSync(join(dir, 'file.sock')), 'as it was');
  mkdirSync(join(dir, 'open'));
  chmodSync(join(dir, 'open'), 0o777);
  t.match(
    await run(['--socket', join(dir, 'open', 'a.sock')]),
    { exitCode: 3, stderr: /others may write/ },
    'a folder that others may write to is refused',
  );
  mkdirSync(join(dir, 'open', 'own'));
  symlinkSync(join(dir, 'open', 'own'), join(dir, 'link'));
  for (const way of ['open/own', 'open/missing', 'link', 'link/missing'])
    t.match(
      await run(['--socket', join(dir, way, 'a.sock')]),
      { exitCode: 3, stderr: /others may write to \S*\/open:/ },
      `so is ${way}, which is below it`,
    );
  t.notOk(existsSync(join(dir, 'open', 'missing')), 'and nothing is made there');
  chmodSync(join(dir, 'open'), 0o1777);
  const sticky = join(dir, 'link', 'made', 'a.sock');
  endAfter(t, sticky);
  t.equal((await run(['--daemonize', '--socket', sticky], soft.env)).exitCode, 0, 'unless it is sticky, like /tmp');
  if (isRoot) {
    const others = { exitCode: 3, stderr: /belongs to user 65534/ };
    symlinkSync(join(dir, 'open', 'own'), join(dir, 'open', 'link'));
    lchownSync(join(dir, 'open', 'link'), 65534, 65534);
    t.match(await run(['--socket', join(dir, 'open', 'link', 'b.sock')]), others, "another user's link is refused");
    mkdirSync(join(dir, 'theirs', 'ours'), { recursive: true });
    lchownSync(join(dir, 'theirs'), 65534, 65534);
    t.match(await run(['--socket', join(dir, 'theirs', 'ours', 'b.sock')]), others, 'and a folder in their own');
  }
  symlinkSync(join(dir, 'loop'), join(dir, 'loop'));
  t.match(
    await run(['--socket', join(dir, 'loop', 'a.sock')]),
    { exitCode: 1, stderr: /too many links/ },
    'a link to itself leads nowhere',
  );
  t.match(await run(['--socket', 'here.sock']), { exitCode: 1, stderr: /absolute path/ }, 'a relative path is refused');
  symlinkSync('/etc/passwd', join(dir, 'link.sock.lock'));
  t.not((await run(['--socket', join(dir, 'link.sock')])).exitCode, 0, 'a link in place of the lock is not followed');
  writeFileSync(join(dir, 'precious'), 'content');
  linkSync(join(dir, 'precious'), join(dir, 'hard.sock.lock'));
  t.match(
    await run(['--socket', join(dir, 'hard.sock')]),
    { exitCode: 3, stderr: /remove it/ },
    'nor is a hard one taken',
  );
  t.equal(readFileSync(join(dir, 'precious'), 'utf8'), 'content', 'which may be of something else');
  const made = join(dir, 'made', 'a.sock');
  endAfter(t, made);
  const start = [daemon, '--daemonize', '--socket', made];
  const { exitCode } = await exec('sh', ['-c', 'umask 0077; exec "$0" "$@"', ...start], {
    timeoutMs: 15_000,
    reject: false,
    env: { CUDAPOOL_CONFIG: undefined, ...soft.env },
  });
  t.equal(exitCode, 0, 'a folder that is missing is made');
  t.equal(statSync(join(dir, 'made')).mode & 0o777, 0o755, 'with the right mode, whatever the umask');
});

t.test('idleness', async (t) => {
  const soft = softCuda(t);
  const pool = await startPool(t, soft, { args: ['--idle', '1'] });
  const client = startClient(t, programs, pool.socket);
  await client.say('connect tool');
  await new Promise((resolve) => setTimeout(resolve, 1800));
  t.equal(pool.child.exitCode, null, 'a pool with a client does not end');
  await client.kill();
  t.ok(await until('it ends', () => pool.child.exitCode !== null, 5000), 'without one it does');
  t.equal(pool.child.exitCode, 0, 'with success');
});

t.test('by systemd', async (t) => {
  const soft = softCuda(t);
  const dir = tempDir(t);
  const socket = join(dir, 'pool.sock');
  const child = spawn(join(programs, 'activate'), [socket, '660', daemon, '--idle', '1'], {
    env: { ...process.env, ...soft.env, CUDAPOOL_SOCKET: '/nonexistent/other.sock' },
    stdio: 'ignore',
  });
  t.teardown(() => child.kill('SIGKILL'));
  await until('it answers', async () => (await run(['--status', '--socket', socket])).exitCode === 0);
  const { stdout } = await run(['--status', '--socket', socket]);
  t.match(JSON.parse(stdout), { socket, pid: child.pid }, 'it serves the socket that it was given');
  t.match(await run(['--socket', socket]), { exitCode: 1, stderr: /already/ }, 'which no other pool can take');
  await until('it ends', () => child.exitCode !== null, 6000);
  t.ok(existsSync(socket), 'and when it ends, it leaves the socket to systemd');
});

t.test('the units', async (t) => {
  const found = await exec('sh', ['-c', 'command -v systemd-analyze'], { timeoutMs: 5000, reject: false });
  if (!skipUnless(t, found.exitCode === 0, 'no systemd-analyze here')) return;
  const root = tempDir(t);
  const folder = join(root, 'lib', 'systemd', 'system');
  const places = [`DESTDIR=${root}`, 'PREFIX=/opt/cudapool', 'UNITDIR=/lib/systemd/system'];
  await exec('make', ['-s', '-C', inRoot('pool'), 'install', ...places], { timeoutMs: 120_000 });
  // Those of every machine that ours refer to.
  for (const name of ['sysinit', 'basic', 'shutdown', 'sockets', 'multi-user'])
    writeFileSync(join(folder, `${name}.target`), `[Unit]\nDescription=${name}\n`);
  const [service, sockets] = [join(folder, 'cudapoold.service'), join(folder, 'cudapoold.socket')];
  const verify = async () => {
    const args = ['verify', '--man=no', `--root=${root}`, service, sockets];
    const { exitCode, stdout, stderr } = await exec('systemd-analyze', args, { timeoutMs: 20_000, reject: false });
    // What a systemd before 254 does not know yet, it says and ignores.
    const said = `${stdout}${stderr}`.replace(/^.*Unknown key.*FileDescriptorStorePreserve.*\n?/gm, '');
    return { exitCode, said: said.trim() };
  };
  t.same(await verify(), { exitCode: 0, said: '' }, 'nothing is wrong with them as they are installed');
  const text = readFileSync(service, 'utf8');
  writeFileSync(service, text.replace('KillMode=mixed', 'KillMode=sometimes'));
  t.match(await verify(), { said: /kill mode/ }, 'a wrong setting would be found');
  writeFileSync(service, text);
  rmSync(join(root, 'opt', 'cudapool', 'sbin', 'cudapoold'));
  t.match(await verify(), { exitCode: 1, said: /is not executable/ }, 'so would a program that is not there');
});

t.test('readiness', async (t) => {
  // Node has no unix datagram sockets; python has.
  const soft = softCuda(t);
  const dir = tempDir(t);
  const script = `
import os, socket, subprocess, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
s.settimeout(10)
def heard(): # not whether descriptors are kept, which it asks about as well
    while True:
        said = s.recv(100).decode()
        if not said.startswith(('FDSTORE', 'BARRIER')):
            return said
p = subprocess.Popen([sys.argv[2], '--socket', sys.argv[3]], env=dict(os.environ, NOTIFY_SOCKET=sys.argv[1]))
print(heard())
c = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
c.connect(sys.argv[3])
p.terminate()
print(heard())
print(p.wait())
`;
  const { stdout } = await exec('python3', ['-c', script, join(dir, 'notify'), daemon, join(dir, 'pool.sock')], {
    timeoutMs: 15_000,
    env: soft.env,
  });
  t.same(stdout.trim().split('\n'), ['READY=1', 'STOPPING=1', '0'], 'systemd hears when it accepts and when it ends');
});

t.test('no usable driver', async (t) => {
  const soft = softCuda(t);
  const library = join(tempDir(t), 'libcuda.so.1');
  const pool = await startPool(t, soft, { warm: false, env: { CUDAPOOL_LIBCUDA: library } });
  const client = startClient(t, programs, pool.socket);
  t.match(
    (await client.say('connect tool 5000')).line,
    /^welcome 2 .*no CUDA driver.*CUDAPOOL_LIBCUDA/,
    'is said in the welcome, with the fix',
  );
  const asked = await client.say(`do state ${process.pid}`);
  t.equal(asked.error, ERRNO.ENODEV, 'and to who asks for an action');
  t.match(asked.line, /no CUDA driver/, 'in words');
  await client.say('close');
  copyFileSync(join(built.softcudaLib, 'libcuda.so.1'), library);
  const welcome = await until('the driver is found', async () => {
    const { line } = await client.say('connect tool 2000');
    await client.say('close');
    return line.startsWith('welcome 1');
  });
  t.ok(welcome, 'one that appears later is found when somebody asks again');

  const bad = async (libcuda: string, extra: Record<string, string> = {}) => {
    const { status } = await startPool(t, softCuda(t, extra), { warm: false, env: { CUDAPOOL_LIBCUDA: libcuda } });
    return until('it is found out', async () => {
      const { worker } = (await status()) as { worker: { state: string; text: string } };
      return worker.state === 'failed' && worker.text;
    });
  };
  t.match(await bad(join(programs, 'olddriver.so')), /r570 or newer is needed/, 'an old driver is named as such');
  t.match(await bad('libc.so.6'), /no CUDA driver/, 'another library is, too');
  t.match(await bad('libcuda.so.1', { SOFTCUDA_DEVICES: '0' }), /no GPU/, 'so is a machine without GPUs');
  t.match(await bad(join(programs, 'crashdriver.so')), /signal 6/, 'and a driver that crashes');
});

t.test('warm contexts', async (t) => {
  const many = await startPool(t, softCuda(t, { SOFTCUDA_DEVICES: '3' }), { args: ['--contexts', '2'] });
  t.match(
    await statusOf(many),
    { worker: { devices: 3, contexts: 2, warm_device: 0, driver_version: 13000 } },
    'on as many devices as asked for',
  );
  const none = await startPool(t, softCuda(t), { args: ['--contexts', '0'] });
  t.match(
    await statusOf(none),
    { worker: { contexts: 0, warm_device: -1, warm_context: '0x0' } },
    'none, if not wanted',
  );
  const poor = await startPool(t, softCuda(t, { SOFTCUDA_FAULTS: 'cuDevicePrimaryCtxRetain=2' }));
  t.match(
    await statusOf(poor),
    { worker: { state: 'warm', contexts: 0, text: /OUT_OF_MEMORY/ } },
    'without the memory for one it works all the same',
  );
});
