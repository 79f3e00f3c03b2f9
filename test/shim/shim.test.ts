// SPDX-License-Identifier: MIT
// The shim: small programs with and without it must see the same driver; warm contexts, forks, signals, restores, cost.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import {
  buildSnippets,
  built,
  builtCriu,
  inRoot,
  isRoot,
  runTap,
  skipUnless,
  softCuda,
  tempDir,
  until,
} from '../support/index.ts';

const shim = built.shim;
const out = await buildSnippets('shim');
const program = (name: string): string => join(out, name);

/** What a program prints on stdout. */
async function says(name: string, args: string[], env: Record<string, string | undefined>): Promise<string> {
  const { stdout } = await exec(program(name), args, { timeoutMs: 20_000, env: { SOFTCUDA_DEVICES: '2', ...env } });
  return stdout;
}

t.test('the table', async (t) => {
  const text = readFileSync(join(built.shim, '..', 'functions.def'), 'utf8');
  const names = [...text.matchAll(/\b(?:GATED|WRAPPED)\((cu\w+)\)/g)].map((match) => match[1] as string);
  t.same(names, [...new Set(names)].sort(), 'is in order, each name once');
  const { stdout } = await exec('nm', ['-D', '--defined-only', shim], { timeoutMs: 5000 });
  const exported = stdout.split('\n').filter((line) => / T /.test(line));
  t.same(
    exported.map((line) => line.split(' ').at(-1)).sort(),
    [...names.map((name) => `${name}@libcuda.so.1`), 'dlsym', 'dlvsym'].sort(),
    'is what the library exports, and nothing else',
  );
  const header = '/usr/local/cuda/include/cuda.h';
  if (existsSync(header)) {
    const free = /^cu(Init|DriverGetVersion|GetError(Name|String)|GetExportTable|Logs\w+|CheckpointProcess\w+)$/;
    const declared = [...readFileSync(header, 'utf8').matchAll(/^CUresult CUDAAPI (cu\w+)\(/gm)].map(
      (m) => m[1] as string,
    );
    t.ok(declared.length > 300, 'a real cuda.h');
    t.same(
      declared.filter((name) => !free.test(name) && !names.includes(name)),
      [],
      'lacks no function of it',
    );
  }
  const versions = await exec('objdump', ['-T', shim], { timeoutMs: 5000 });
  const newest = [...versions.stdout.matchAll(/GLIBC_2\.(\d+)/g)].map((match) => Number(match[1]));
  t.ok(Math.max(...newest) <= 17, 'needs no newer glibc than 2.17');
});

t.test('the same driver with and without', async (t) => {
  const { env } = softCuda(t);
  const runs: [string, string, string[], string?][] = [
    ['linked directly', 'routes-direct', ['direct']],
    ...['dlsym', 'dlvsym', 'default', 'next', 'proc', 'proc_v2'].map((route): [string, string, string[]] => [
      route,
      'routes',
      [route],
    ]),
    ...['dlsym', 'proc', 'proc_v2'].flatMap((route): [string, string, string[], string][] => [
      [`${route} in the constructor of a library that comes first`, 'nothing', [], route],
      [`${route} in a static library`, 'routes-late', [], route],
    ]),
  ];
  for (const [name, file, args, route] of runs) {
    const first = file === 'nothing' ? program('routes-first.so') : '';
    const base = { ...env, ROUTES_ROUTE: route };
    const without = await says(file, args, { ...base, LD_PRELOAD: first });
    t.match(without, /cuDevicePrimaryCtxRetain\(&ctx, 0\) +0\n/, `${name}: the driver answers`);
    const preloaded = { ...base, LD_PRELOAD: `${shim} ${first}` };
    t.equal(await says(file, args, preloaded), without, `${name}: the same`);
    for (const extra of [{ ROUTES_WAIT_MS: '100' }, {}, { CUDAPOOL_WARM_CREATED: '1', ROUTES_WAIT_MS: '100' }]) {
      const warm = { ...preloaded, CUDAPOOL_WARM: `start:${file}`, ...extra };
      t.equal(await says(file, args, warm), without, `${name}: the same, warm ${JSON.stringify(extra)}`);
    }
  }
});

t.test('every function before cuInit', async (t) => {
  const { env } = softCuda(t);
  const without = await says('routes', ['presence'], env);
  t.equal(await says('routes', ['presence'], { ...env, LD_PRELOAD: shim }), without, 'the same');
  const warm = { ...env, LD_PRELOAD: shim, CUDAPOOL_WARM: 'start:routes', ROUTES_WAIT_MS: '100' };
  // What fails for its arguments before the driver looks whether it is initialised may say so either way.
  const expected = without.replaceAll(/^(cu\w+) 1$/gm, '$1 3');
  t.equal((await says('routes', ['presence'], warm)).replaceAll(/^(cu\w+) 1$/gm, '$1 3'), expected, 'the same, warm');
  t.match(without, /^cuMemAlloc_v2 3$/m);
});

t.test('behaviour', async (t) => {
  const start = { CUDAPOOL_WARM: 'start:behave' };
  const runs: [string[], Record<string, string>][] = [
    ...['fork', 'closed', 'scope', 'signals', 'errors', 'commands', 'nomemfd'].map(
      (name): [string[], Record<string, string>] => [[name], {}],
    ),
    ...[['handed'], ['threads'], ['forks'], ['unwanted', 'flags'], ['unwanted', 'own'], ['unwanted', 'device']].map(
      (args): [string[], Record<string, string>] => [args, start],
    ),
    [['created'], { ...start, CUDAPOOL_WARM_CREATED: '1' }],
    [['failing'], { ...start, CUDAPOOL_WARM_DEVICE: '0', SOFTCUDA_DEVICES: '0' }],
    [['next'], { LD_PRELOAD: `${shim} ${program('libnext1.so')} ${program('libnext2.so')}` }],
  ];
  for (const [args, extra] of runs) {
    const env = { ...softCuda(t).env, SOFTCUDA_DEVICES: '2', LD_PRELOAD: shim, ...extra };
    await runTap(t, program('behave'), args, env);
  }
  const env = { ...softCuda(t).env, LD_PRELOAD: `${shim} ${program('libnext1.so')}` };
  await runTap(t, program('behave-direct'), ['between'], env);
});

t.test('sanitizers', async (t) => {
  const options = { ASAN_OPTIONS: 'detect_leaks=0:verify_asan_link_order=0' };
  for (const file of ['behave-asan', 'behave-tsan']) {
    for (const name of ['errors', 'commands', 'signals']) {
      await runTap(t, program(file), [name], { ...softCuda(t).env, ...options, LD_PRELOAD: shim });
    }
  }

  const built_ = inRoot('build', 'c', 'preload-asan');
  const make = ['-s', '-C', inRoot('preload'), `OUT=${built_}`, 'WERROR=1', 'SANITIZE=address,undefined'];
  await exec('make', make, { timeoutMs: 120_000 });
  const runtime: string[] = [];
  for (const library of ['libasan.so', 'libubsan.so']) {
    runtime.push((await exec('cc', [`-print-file-name=${library}`], { timeoutMs: 5000 })).stdout.trim());
  }
  const preload = { LD_PRELOAD: [...runtime, join(built_, 'libcudapool.so')].join(' '), SOFTCUDA_DEVICES: '2' };
  for (const args of [['fork'], ['scope'], ['commands'], ['handed'], ['threads'], ['unwanted', 'flags']]) {
    const warm = /fork|scope|commands/.test(args[0] as string) ? 'never' : 'start:behave';
    const env = { ...softCuda(t).env, ...options, ...preload, CUDAPOOL_WARM: warm };
    await runTap(t, program('behave'), args, env, `the shim itself: ${args.join(' ')}`);
  }
});

t.test('the end of a process that is being warmed', async (t) => {
  const env = { ...softCuda(t).env, LD_PRELOAD: shim, CUDAPOOL_WARM: 'start:behave' };
  for (let i = 0; i < 20; i++) {
    const { exitCode, wall_ms } = await exec(program('behave'), ['exit'], { timeoutMs: 10_000, env, reject: false });
    if (exitCode !== 0 || wall_ms > 5000) t.fail(`run ${i}: exit code ${exitCode} after ${wall_ms} ms`);
  }
  t.pass('neither hangs nor crashes');
});

t.test('a warm context that goes while its state is asked for', async (t) => {
  const env = { ...softCuda(t).env, LD_PRELOAD: shim, CUDAPOOL_WARM: 'start:behave' };
  const seen: string[] = [];
  for (let i = 0; i < 30; i++) {
    const { stdout } = await exec(program('behave'), ['watched'], { timeoutMs: 10_000, env, reject: false });
    seen.push(...stdout.split('\n').filter((line) => !line.startsWith('ok ') && line !== '' && line !== '1..3'));
  }
  t.same(seen, [], 'is never seen');
});

t.test('a process without CUDA', async (t) => {
  const { env } = softCuda(t);
  const log = join(tempDir(t), 'log');
  const with_ = { ...env, LD_PRELOAD: shim, CUDAPOOL_LOG: '4', CUDAPOOL_LOG_FILE: log };
  const run = (file: string, args: string[]) => exec(file, args, { timeoutMs: 20_000, env: with_, reject: false });
  const shell = await run('sh', ['-c', 'ls /proc/self/task | wc -l; grep -c cudapool-control /proc/self/maps; true']);
  t.same([shell.stdout.trim(), shell.stderr], ['1\n0', ''], 'no thread, no page, no output');
  const python = await run('python3', [
    '-W',
    'error',
    '-c',
    'import os,sys; p=os.fork() or os._exit(0); sys.exit(os.waitpid(p,0)[1])',
  ]);
  t.same([python.exitCode, python.stdout, python.stderr], [0, '', ''], 'python forks without a warning');
  if (isRoot) {
    const unshared = await run('unshare', ['-U', 'true']);
    t.same([unshared.exitCode, unshared.stderr], [0, ''], 'unshare -U works');
  }
  t.notOk(existsSync(log), 'nothing is logged');
});

t.test('an environment that changes after the warming', async (t) => {
  const { env } = softCuda(t);
  const log = join(tempDir(t), 'log');
  const code = [
    'import ctypes,os,time',
    'time.sleep(0.3)',
    'libc=ctypes.CDLL(None); libc.setenv(b"CUDA_VISIBLE_DEVICES", b"1", 1)',
    'ctypes.CDLL("libcuda.so.1").cuInit(0)',
  ].join('\n');
  const extra = { LD_PRELOAD: shim, CUDAPOOL_WARM: 'start:python3', CUDAPOOL_LOG_FILE: log };
  await exec('python3', ['-c', code], { timeoutMs: 20_000, env: { ...env, ...extra } });
  t.match(readFileSync(log, 'utf8'), /CUDA_VISIBLE_DEVICES .* was changed/, 'is said in the log');
});

t.test('tools of checkpointing', async (t) => {
  const { env, dir } = softCuda(t);
  const log = join(dir, 'log');
  const extra = { LD_PRELOAD: shim, CUDAPOOL_LOG: '4', CUDAPOOL_LOG_FILE: log, CUDAPOOL_WARM: 'start:cuda-checkpoint' };
  const args = ['--get-state', '--pid', String(process.pid)];
  const run = (more: Record<string, string>) =>
    exec(join(built.softcudaBin, 'cuda-checkpoint'), args, {
      timeoutMs: 10_000,
      env: { ...env, ...more },
      reject: false,
    });
  const [plain, shimmed] = [await run({}), await run(extra)];
  t.same(
    [shimmed.exitCode, shimmed.stdout, shimmed.stderr],
    [plain.exitCode, plain.stdout, plain.stderr],
    'see no shim',
  );
  t.notOk(existsSync(log));
});

t.test('cost', async (t) => {
  const { env } = softCuda(t);
  const { stdout } = await exec(program('call_cost'), [shim, program('nothing')], { timeoutMs: 60_000, env });
  const cost = JSON.parse(stdout) as {
    calls: {
      function: string;
      threads: number;
      without_ns: number;
      control_ns: number;
      with_ns: number;
      again_ns: number;
    }[];
    start_up: { without_ms: number; with_ms: number };
  };
  for (const c of cost.calls) {
    t.ok(c.without_ns > 0 && c.with_ns > 0, `${c.function}, ${c.threads} threads: ${c.without_ns} and ${c.with_ns} ns`);
    t.ok(c.control_ns > 0 && c.again_ns > 0, `beside ${c.control_ns} by the control, and again ${c.again_ns} ns`);
    t.ok(c.with_ns - c.without_ns < 20, 'under 20 ns more');
  }
  const { without_ms, with_ms } = cost.start_up;
  t.ok(with_ms - without_ms < 1, `a process without CUDA: ${without_ms} and ${with_ms} ms to start and end`);
});

// A process with a warm context has a driver to be dumped: that is the pool's affair (test/e2e), so only 'never' goes twice.
const restores = [
  { version: '4.2.1', warm: 'restore', times: 1, handed_back: 1 },
  { version: '4.2.1', warm: 'never', times: 2, handed_back: 0 },
  { version: '4.1.1', warm: 'never', times: 2, handed_back: 0 },
];
for (const { version, warm, times, handed_back } of restores) {
  t.test(`dumped before it used CUDA, CRIU ${version}, CUDAPOOL_WARM=${warm}`, async (t) => {
    const criu = process.env.CUDAPOOL_TEST_CRIU ?? builtCriu(version).criu;
    if (!skipUnless(t, isRoot && existsSync(criu), `needs root and CRIU at ${criu}`)) return;
    const { env } = softCuda(t);
    const dir = tempDir(t);
    const [go, answer] = [join(dir, 'go'), join(dir, 'answer')];
    const preload = { ...env, LD_PRELOAD: shim, CUDAPOOL_WARM: warm };
    // Nothing of it belongs to the outside: exec() gives it a session of its own, the shell takes its pipes away.
    const script = 'exec "$@" </dev/null >/dev/null 2>&1';
    let owner = exec('sh', ['-c', script, 'sh', program('behave'), 'restored', go, answer], {
      timeoutMs: 60_000,
      env: preload,
      reject: false,
    });
    const pid = await until('the program starts', async () => {
      const found = await exec('pgrep', ['-f', `behave restored ${go}`], { timeoutMs: 5000, reject: false });
      const pids = found.stdout.split('\n').filter((id) => id && maps(id).includes('cudapool-control'));
      return pids[0];
    });
    for (let round = 1; round <= times; round++) {
      const images = tempDir(t);
      const dump = ['dump', '-t', pid, '-D', images, '-o', 'dump.log'];
      const dumped = await exec(criu, dump, { timeoutMs: 30_000, reject: false });
      t.equal(dumped.exitCode, 0, `dump ${round}`);
      await owner;
      // Not detached: then CRIU reaps what it restored.
      owner = exec(criu, ['restore', '-D', images, '-o', 'restore.log', '-v4'], {
        timeoutMs: 60_000,
        reject: false,
      });
      const log = join(images, 'restore.log');
      await until('the restore', () => existsSync(log) && readFileSync(log, 'utf8').includes('Tasks resumed'));
      t.match(maps(pid), 'cudapool-control', 'the page is there again');
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
    writeFileSync(go, '');
    await owner;
    const said = JSON.parse(readFileSync(answer, 'utf8')) as Record<string, number | boolean>;
    t.match(said, { init: 0, retain: 0, restores: times, handed_back, ping: true }, basename(criu));
  });
}

/** The mappings of a process; empty if there is none. */
function maps(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/maps`, 'utf8');
  } catch {
    return '';
  }
}
