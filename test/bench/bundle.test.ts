// SPDX-License-Identifier: MIT
// The bundle's parts: which packages go along, and the script that checks, unpacks once, and runs.
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { packFolder } from '../../harness/adapters/tar.ts';
import { runtimePackages, script, sha256Of } from '../../harness/bundle.ts';
import { cudapool, tempDir } from '../support/index.ts';

t.test('what the harness needs to run goes along, what it needs to build does not', async (t) => {
  const packages = runtimePackages();
  const names = packages.map((path) => path.replace(/^.*node_modules\//, ''));
  for (const name of ['commander', 'execa', 'ffi-rs', 'valibot', 'simple-statistics', 'tinybench'])
    t.ok(names.includes(name), name);
  t.ok(
    names.some((name) => name.startsWith('@yuuang/ffi-rs-linux')),
    'the native part of ffi-rs',
  );
  for (const name of ['typescript', 'node-gyp', 'tap']) t.notOk(names.includes(name), name);
  t.ok(packages.every((path) => existsSync(join(path, 'package.json'))));
});

t.test('unpack-and-run.sh', async (t) => {
  const dir = tempDir(t);
  const content = join(dir, 'content');
  mkdirSync(join(content, 'bin'), { recursive: true });
  writeFileSync(join(content, 'bin', 'cudapool'), '#!/bin/sh\necho "ran $*"\nexit 7\n');
  chmodSync(join(content, 'bin', 'cudapool'), 0o755);
  const archive = join(dir, 'cudapool.tar.xz');
  await packFolder(content, archive);
  const runner = join(dir, 'unpack-and-run.sh');
  script(runner, 'unpack-and-run.sh', { ARCHIVE: basename(archive), SHA256: await sha256Of(archive) });
  const target = join(dir, 'target');
  const run = (args: string[]) =>
    exec(runner, args, { timeoutMs: 20_000, reject: false, env: { CUDAPOOL_BUNDLE_DIR: target } });

  t.match(await run(['bench', 'a b']), { stdout: 'ran bench a b', exitCode: 7 }, 'the exit code is the command’s');
  writeFileSync(join(target, 'mark'), '');
  await run([]);
  t.ok(existsSync(join(target, 'mark')), 'unpacked once only');

  writeFileSync(archive, Buffer.concat([readFileSync(archive), Buffer.from('x')]));
  t.match(await run([]), { exitCode: 7 }, 'what is unpacked already is used');
  writeFileSync(join(target, 'bundle.sha256'), 'of another bundle\n');
  t.match(await run([]), { exitCode: 3, stderr: /is not what this script was made with\nhint: / });
});

t.test('every script is one', async (t) => {
  const dir = tempDir(t);
  for (const name of ['wrap.sh', 'cudapool.sh', 'unpack-and-run.sh']) {
    const path = join(dir, name);
    script(path, name, { UP: '..', PROGRAM: 'real/x', ARCHIVE: 'a', SHA256: '0' });
    t.notMatch(readFileSync(path, 'utf8'), /@[A-Z0-9]+@/, `${name}: all names are filled in`);
    t.equal((await exec('sh', ['-n', path], { timeoutMs: 5000, reject: false })).exitCode, 0, name);
  }
});

t.test('usage', async (t) => {
  t.match(await cudapool(['bundle', '--max-mb', 'x']), { exitCode: 2, stderr: /not a number of MiB/ });
  const dry = await cudapool(['bundle', '--dry-run', '--out', join(tempDir(t), 'never')]);
  t.match(dry, { exitCode: 0, stdout: /^write .*never\/cudapool\.tar\.xz$/m });
});
