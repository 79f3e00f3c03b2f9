// SPDX-License-Identifier: MIT
// Parked GPU memory on the command line: images, tiers, records, and what a wrong configuration does.
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import t from 'tap';
import { inspectContainer } from '../../harness/adapters/podman.ts';
import { podmanFlags } from '../../harness/container/cli-options.ts';
import { imageDirAt, imagesIn, recordLine } from '../../harness/container/images.ts';
import { makeLab } from '../../harness/container/lab.ts';
import { leftBytes, type ParkRecord, parksOf, recordsIn, recordsOf } from '../../harness/container/records.ts';
import { age, bytes, count, table } from '../../harness/output.ts';
import { builtCriu, cudapool, isRoot, skipUnless, tempDir } from '../support/index.ts';

const TOKEN = '0123456789abcdef0123456789abcdef';

const record: ParkRecord = {
  stage: 'restore',
  at: '2026-11-22T17:04:32Z',
  path: 'hot-copy',
  error: 0,
  why: '',
  container: '',
  process: 'python3',
  pid: 4711,
  tier: 'hot',
  parked_bytes: 7 * 2 ** 30,
  image_bytes: 2 ** 30,
  left_bytes: { small: 12 * 2 ** 20, managed: 0 },
  phases_us: { claim: 12 },
};

t.test('records', async (t) => {
  t.equal(
    recordLine(record),
    '7.00 GiB of GPU memory of python3 (4711): copied on the GPU; left to the driver: 12.0 MiB small',
  );
  t.match(recordLine({ ...record, path: 'stock', why: 'it has no shim' }), /not parked \(it has no shim\)/);
  t.equal(leftBytes(record), 12 * 2 ** 20);
  t.same(recordsOf([record, { ...record, parked_bytes: -1 }, 'no record', null]), [record], 'what is none is left out');
  t.same([recordsOf(undefined), parksOf({})], [[], []]);

  const dir = tempDir(t);
  t.same(recordsIn(dir, 'restore'), [], 'none where the pool had no part in it');
  writeFileSync(
    join(dir, 'cudapool-restore.json'),
    JSON.stringify({ schema: 'cudapool-records-1', records: [record] }),
  );
  t.same(recordsIn(dir, 'restore'), [record]);
  t.same(recordsIn(dir, 'checkpoint'), []);
  writeFileSync(join(dir, 'cudapool-restore.json'), '{"schema":"cudapool-records-1","rec');
  t.same(recordsIn(dir, 'restore'), [], 'cut off');
});

t.test('images in a directory', async (t) => {
  const dir = tempDir(t);
  for (const name of [`cudapool-${TOKEN}.img`, `cudapool-${TOKEN}.img.part`, 'cudapool-x.img', 'pages-1.img'])
    writeFileSync(join(dir, name), 'x');
  t.match(imagesIn(dir), [{ file: join(dir, `cudapool-${TOKEN}.img`), token: TOKEN, bytes: 1 }]);
  t.equal(imagesIn(dir).length, 1, 'complete ones only');
  t.equal(imageDirAt(dir), dir);
  t.equal(imageDirAt(join(dir, '..')), undefined);
  t.same(imagesIn(join(dir, 'none')), []);
});

t.test('cudapool image', async (t) => {
  const dir = tempDir(t);
  const missing = await cudapool(['image', 'inspect', join(dir, 'none')]);
  t.match(missing, { exitCode: 2, stderr: /is not there/, stdout: '' });
  const empty = await cudapool(['image', 'verify', '--json', dir]);
  t.match([empty.exitCode, JSON.parse(empty.stdout)], [1, { error: { code: 'ERR_CUDAPOOL_NO_IMAGE' } }]);

  mkdirSync(join(dir, 'checkpoint'));
  const file = join(dir, 'checkpoint', `cudapool-${TOKEN}.img`);
  writeFileSync(file, 'not an image');
  for (const verb of ['inspect', 'verify']) {
    const bad = await cudapool(['image', verb, dir, '--json']);
    t.equal(bad.exitCode, 1, `${verb}: an image that is none`);
    t.match(JSON.parse(bad.stdout), { images: [{ file, error: { code: 'ERR_CUDAPOOL_IMAGE' } }] });
    t.match((await cudapool(['image', verb, file])).stderr, /hint:/);
  }
});

t.test('cudapool evict and prefetch', async (t) => {
  const socket = join(tempDir(t), 's');
  const dir = tempDir(t);
  writeFileSync(join(dir, `cudapool-${TOKEN}.img`), 'x');
  for (const args of [['evict'], ['evict', TOKEN, '--tier', 'cold'], ['evict', dir], ['prefetch', dir]]) {
    const dry = await cudapool([...args, '--socket', socket, '--dry-run']);
    t.match(
      dry,
      { exitCode: 0, stdout: /cudapoold --(evict|prefetch) .* --tier (staged|cold|hot) --socket/ },
      args.join(' '),
    );
    if (!skipUnless(t, isRoot, 'needs root')) continue;
    const none = await cudapool([...args, '--socket', socket]);
    t.match(none, { exitCode: 1, stderr: /there is no pool[\s\S]*cudapool pool start/ });
  }
  t.match(await cudapool(['evict', '--tier', 'hot']), { exitCode: 2 });
  for (const verb of ['evict', 'prefetch']) {
    t.match(await cudapool([verb, '/nonexistent']), { exitCode: 2, stderr: /\/nonexistent is no folder/ });
    t.match(await cudapool([verb, tempDir(t)]), { exitCode: 1, stderr: /ERR_CUDAPOOL_NO_IMAGE/ }, 'an empty folder');
  }
});

t.test('options of podman that are passed on', async (t) => {
  const command = podmanFlags(new Command('x').exitOverride(), [{ flag: '--keep', short: '-k', text: 'keep it' }]);
  t.same(command.parse(['-k'], { from: 'user' }).opts(), { keep: true });
});

t.test('a container with parked memory', async (t) => {
  if (!skipUnless(t, isRoot && builtCriu('4.2.1').ready, 'needs root, and CRIU built')) return;
  const lab = await makeLab({ driver: 'software' });
  t.teardown(() => lab.dispose());
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 16, pieces: 2, shim: true, busy: true });
  const shared = [...lab.podman.globals.map((arg) => `--podman-arg=${arg}`)];
  const env = { ...lab.podman.env, ...lab.env };
  const criu = `--criu=${lab.criu.tree}`;
  const path = { PATH: [...lab.pathDirs, process.env.PATH].join(':') };

  const dumped = await cudapool(['checkpoint', '--keep', criu, ...shared, workload.name], { env: { ...env, ...path } });
  t.match(dumped, { exitCode: 0, stderr: /16\.0 MiB of GPU memory of gpu_app \(\d+\): parked/ });
  const status = await cudapool(['status'], { env });
  t.match(status.stdout, /^\w{12} gpu_app +16\.0 MiB +hot/m, 'a container of another podman: by its id');
  t.match(status.stdout, /last checkpoints and restores\n {2}\d+ s ago, dump of \w{12}: 16\.0 MiB/);
  const named = await cudapool(['status', ...shared], { env });
  const [, token = ''] =
    new RegExp(`^${workload.name} gpu_app +16\\.0 MiB +hot .* ([0-9a-f]{8})$`, 'm').exec(named.stdout) ?? [];
  t.equal(token.length, 8, `by its name, and a token: ${named.stdout}`);

  for (const what of [[...shared, workload.name], [token]]) {
    const evicted = await cudapool(['evict', '--json', ...what], { env });
    t.match(JSON.parse(evicted.stdout), { count: 1, hot_bytes: 16 * 2 ** 20 }, what.join(' '));
    const fetched = await cudapool(['prefetch', '--json', ...shared, workload.name], { env });
    t.match(JSON.parse(fetched.stdout), { count: 1, bytes: 16 * 2 ** 20 });
  }
  const { logs } = await inspectContainer(lab.podman, workload.name);
  const inspected = await cudapool(['image', 'verify', logs], { env });
  t.match(inspected.stdout, /^ {2}GPU memory +16\.0 MiB, 2 pieces of 8\.0 MiB$/m);
  t.match(inspected.stdout, /^ {2}checksums +right$/m);

  const wrong = join(lab.dir, 'wrong.conf');
  writeFileSync(wrong, 'CUDAPOOL_HOT_PERCENT=lots\n');
  const refused = await cudapool(['restore', '--keep', '--json', criu, ...shared, workload.name], {
    env: { ...env, ...path, CUDAPOOL_CONFIG: wrong },
  });
  t.equal(refused.exitCode, 1, 'a wrong configuration is no reason to go the stock way');
  t.match(JSON.parse(refused.stdout), { error: { code: 'ERR_CUDAPOOL_CONFIG' } });

  const restored = await cudapool(['restore', '--keep', '--hot=move', criu, ...shared, workload.name], {
    env: { ...env, ...path },
  });
  t.match(restored, { exitCode: 0, stderr: /16\.0 MiB of GPU memory of gpu_app/ });
  t.match((await workload.ask()).answers, [{ wrong: 0 }]);

  await cudapool(['checkpoint', '--keep', criu, ...shared, workload.name], { env: { ...env, ...path } });
  const without = await cudapool(['restore', '--keep', '--no-pool', criu, ...shared, workload.name], {
    env: { ...env, ...path },
  });
  t.match(without, { exitCode: 0, stderr: /warning: the pool was used all the same/ }, without.stderr);
  t.match(without.stderr, /16\.0 MiB of GPU memory of gpu_app/, 'and what became of its memory is told');
});

t.test('units, and tables that fit', (t) => {
  t.same([0, 1023, 1024, 2 ** 20, 7 * 2 ** 30].map(bytes), ['0 B', '1023 B', '1.0 KiB', '1.0 MiB', '7.00 GiB']);
  t.same([-1, 90, 120, 7200, 172_800].map(age), ['0 s', '90 s', '2 min', '2 h', '2 d']);
  t.same([count(1, 'image'), count(0, 'image')], ['1 image', '0 images']);
  const rows = [
    ['a long name', '1'],
    ['b', '22'],
  ];
  t.equal(table(['x', 'n'], rows, { right: [1] }), 'x             n\na long name   1\nb            22');
  const shrink = { column: 0, width: 12 };
  t.equal(table([], rows, { right: [1], shrink }), 'a long …   1\nb         22');
  t.equal(table([], rows, { right: [1], shrink: { column: 0, width: 99 } }), table([], rows, { right: [1] }));
  t.end();
});
