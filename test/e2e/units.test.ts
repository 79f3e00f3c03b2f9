// SPDX-License-Identifier: MIT
// The parts of harness/container and harness/adapters/podman that need no container.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { messageOf, parseCriuLog } from '../../harness/adapters/criu-log.ts';
import { look } from '../../harness/adapters/exec.ts';
import { nearNames, parseStats } from '../../harness/adapters/podman.ts';
import { ask, expectedChecksum } from '../../harness/container/ask.ts';
import { chooseCriu } from '../../harness/container/criu-tree.ts';
import { pluginEnvironment, wantsPool } from '../../harness/container/environment.ts';
import { inject } from '../../harness/container/injection.ts';
import { buildId, installShim, podmanArguments, shimOf } from '../../harness/container/shim.ts';
import { podmanSubcommand, setsVariable } from '../../harness/run.ts';

const dir = mkdtempSync(join(tmpdir(), 'cudapool-units-'));
t.teardown(() => rmSync(dir, { recursive: true, force: true }));

t.test('which way the plugin went, from its lines', (t) => {
  const loaded = '(00.017) Plugin "cuda_plugin" (version 512 hooks 13)';
  const line = (text: string) => `(00.034298) cuda_plugin: ${text}`;
  const warned = (text: string) => `(00.034298) Warn  (cuda_plugin.c:585): cuda_plugin: ${text}`;
  const cases: [string, string[], string, RegExp][] = [
    ['nothing loaded', ['(00.01) Version: 4.2.1 (gitid 0)'], 'absent', /no cuda_plugin/],
    ['no tool', [loaded, warned('check that cuda-checkpoint is present in $PATH')], 'disabled', /PATH/],
    ['no CUDA in the checkpoint', [loaded], 'disabled', /no process/],
    ['upstream', [loaded, line('initialized: cuda_plugin stage 2')], 'stock', /not patched/],
    [
      'pool',
      [loaded, line('Initializing GPU context pool...'), line('GPU context pool ENABLED - expect faster restore')],
      'pool',
      /ENABLED/,
    ],
    ['off', [loaded, line('GPU context pool is off (CRIU_CUDA_CONTEXT_POOL=1 turns it on)')], 'stock', /off/],
    [
      'lost on the way',
      [
        loaded,
        line('GPU context pool ENABLED - expect faster restore'),
        warned('GPU context pool lost (gone); going on with cuda-checkpoint'),
      ],
      'stock',
      /lost/,
    ],
  ];
  for (const [name, lines, path, why] of cases) {
    const log = parseCriuLog(lines.join('\n'));
    t.equal(log.path, path, name);
    t.match(log.why, why, `${name}: why`);
  }
  const log = parseCriuLog(
    '(00.1) Version: 4.1.1 (gitid 0)\n' +
      "(00.1) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n" +
      '(00.2) 12: Error (criu/x.c:1): a\n(00.3) fine\n',
  );
  t.equal(log.criu_version, '4.1.1');
  t.same(log.errors, ['(00.2) 12: Error (criu/x.c:1): a'], 'without what CRIU says of itself, and goes on');
  t.equal(messageOf(log.errors[0] ?? ''), 'a');
  t.end();
});

t.test("podman's figures", (t) => {
  const printed = {
    podman_restore_duration: 1045838,
    container_statistics: [{ Id: 'abc', runtime_restore_duration: 447987, criu_statistics: { restore_time: 5 } }],
  };
  t.same(parseStats(JSON.stringify(printed)), {
    id: 'abc',
    stats: { podman_ms: 1045.838, runtime_ms: 447.987, criu_us: { restore_time: 5 } },
  });
  t.equal(parseStats('abc\n'), undefined);
  t.equal(parseStats('{ "container_statistics": [] }'), undefined);
  t.equal(parseStats('{ broken'), undefined);
  t.end();
});

t.test('names that may have been meant', (t) => {
  t.same(nearNames('vlm-demo', ['vllm-demo', 'web', 'vlm-demo2']).sort(), ['vllm-demo', 'vlm-demo2']);
  t.same(nearNames('abc', ['zzzzzz']), []);
  t.end();
});

t.test('where `run` stands in a podman command', (t) => {
  t.equal(podmanSubcommand(['podman', 'run', '-d', 'x']), 1);
  t.equal(podmanSubcommand(['podman', '--root', 'run', '--log-level=debug', 'container', 'create', 'x']), 5);
  t.equal(podmanSubcommand(['podman', 'ps', 'run']), -1);
  t.equal(podmanSubcommand(['podman']), -1);
  for (const argv of [['-e', 'A=1'], ['--env', 'A=1'], ['--env=A=1'], ['-eA=1']])
    t.ok(setsVariable(argv, 'A'), argv.join(' '));
  for (const argv of [['A=1'], ['-e', 'AB=1'], ['--env=B=A=1']]) t.notOk(setsVariable(argv, 'A'), argv.join(' '));
  t.end();
});

t.test('when the pool is wanted', (t) => {
  const before = process.env.CRIU_CUDA_CONTEXT_POOL;
  t.teardown(() => {
    if (before === undefined) delete process.env.CRIU_CUDA_CONTEXT_POOL;
    else process.env.CRIU_CUDA_CONTEXT_POOL = before;
  });
  delete process.env.CRIU_CUDA_CONTEXT_POOL;
  t.equal(wantsPool({}), true);
  t.equal(wantsPool({ pool: false }), false);
  process.env.CRIU_CUDA_CONTEXT_POOL = '0';
  t.equal(wantsPool({}), false, 'the environment turns it off');
  t.equal(wantsPool({ pool: true }), true, 'an option comes before the environment');
  process.env.CRIU_CUDA_CONTEXT_POOL = 'yes';
  t.throws(() => wantsPool({}), { code: 'ERR_CUDAPOOL_USAGE', message: /'yes'/, exit: 2 }, 'a slip is told');
  process.env.CRIU_CUDA_CONTEXT_POOL = '0';
  t.equal(wantsPool({ pool: true, env: { CRIU_CUDA_CONTEXT_POOL: '0' } }), false);
  const criu = { tree: '/c', binary: '/c/criu/criu', plugins: '/c/plugins/cuda' };
  process.env.CRIU_CUDA_STREAMS = '3';
  t.teardown(() => delete process.env.CRIU_CUDA_STREAMS);
  t.match(pluginEnvironment(criu, { parallel: false, chunkMb: 7 }), {
    CRIU_LIBS_DIR: '/c/plugins/cuda',
    CRIU_CUDA_CONTEXT_POOL: '0',
    CRIU_CUDA_PARALLEL_RESTORE: '0',
    CRIU_CUDA_STREAMS: '3',
    CRIU_CUDA_CHUNK_MB: '7',
  });
  t.equal(pluginEnvironment(criu, { streams: 5 }).CRIU_CUDA_STREAMS, '5');
  t.equal(pluginEnvironment(criu, {}).HOME, undefined, 'only what means something to CRIU is passed');
  t.end();
});

t.test('the injected criu sets the environment, notes who ran it, and becomes the real one', async (t) => {
  const tree = join(dir, 'tree');
  const criu = { tree, binary: '/usr/bin/env', plugins: tree };
  const env = { A: "it's $HOME", CRIU_LIBS_DIR: tree, CUDAPOOL_STATE_DIR: join(dir, 'state') };
  const injection = inject({ criu, env, pathDirs: ['/first'] });
  const ran = await look('criu', [], { env: { PATH: injection.path } });
  t.match(ran.stdout, /^A=it's \$HOME$/m);
  t.match(ran.stdout, /^PATH=\/first:/m);
  const [start] = injection.starts();
  t.equal(injection.starts().length, 1);
  t.equal(start?.parent, 'node');
  t.equal(start?.cwd, process.cwd());
  injection.dispose();
  t.same(injection.starts(), []);
});

t.test('the shim in a container', async (t) => {
  const source = join(dir, 'x.c');
  const library = join(dir, 'libcudapool.so');
  writeFileSync(source, 'int x;\n');
  await look('cc', ['-shared', '-fPIC', '-Wl,--build-id=0xabcdef0123', '-o', library, source]);
  t.equal(buildId(library), 'abcdef0123');
  const installed = installShim(join(dir, 'shim'), library);
  t.equal(installed, join(dir, 'shim', 'abcdef0123', 'libcudapool.so'));
  t.equal(installShim(join(dir, 'shim'), library), installed, 'once is enough');
  t.throws(() => buildId(source), { code: 'ERR_CUDAPOOL_SHIM' });
  t.same(podmanArguments({ shim: { library: '/s/a/libcudapool.so', dir: '/s', env: { CUDAPOOL_WARM: 'never' } } }), [
    ...['--volume', '/s:/s:ro', '--env', 'LD_PRELOAD=/s/a/libcudapool.so', '--env', 'CUDAPOOL_WARM=never'],
  ]);
  const container = { id: '', name: '', status: '', running: false, pid: 0, runtime: '', logs: '' };
  const mounts = [{ source: join(dir, 'shim'), destination: '/s' }];
  t.equal(shimOf({ ...container, env: [], mounts }).state, 'absent');
  const env = ['LD_PRELOAD=/lib/other.so /s/abcdef0123/libcudapool.so'];
  t.equal(shimOf({ ...container, env, mounts }).state, 'present');
  rmSync(installed);
  t.equal(shimOf({ ...container, env, mounts }).state, 'lost');
});

t.test('a CRIU that is not there, or not built', (t) => {
  t.throws(() => chooseCriu(join(dir, 'none')), { code: 'ERR_CUDAPOOL_CRIU_NOT_BUILT', exit: 3 });
  t.throws(() => chooseCriu(dir), { code: 'ERR_CUDAPOOL_CRIU_NOT_BUILT', hint: /cudapool build/ });
  t.end();
});

t.test('the checksum, and answers that are none', async (t) => {
  // by hand: word[0] = 5, word[1] = (2654435761 ^ 5), each xor its index, times 1 and 3
  t.equal(expectedChecksum(2, 5), (5n + BigInt((2654435761 ^ 5 ^ 1) >>> 0) * 3n).toString(16).padStart(16, '0'));
  t.equal(expectedChecksum(0, 1), '0'.repeat(16));
  await t.rejects(ask(dir, { timeoutMs: 30 }), { code: 'ERR_CUDAPOOL_NO_ANSWER' });
  writeFileSync(join(dir, 'answer'), '{"nonce":');
  await t.rejects(ask(dir, { timeoutMs: 1000 }), { code: 'ERR_CUDAPOOL_ANSWER' });
  writeFileSync(join(dir, 'answer'), '{"nonce":"old","index":0,"pid":1,"counter":1,"answer_us":1}');
  await t.rejects(ask(dir, { timeoutMs: 30 }), { code: 'ERR_CUDAPOOL_NO_ANSWER' }, 'an old answer is not taken');
});
