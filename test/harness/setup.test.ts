// SPDX-License-Identifier: MIT
// Set-up: what is there is left alone, what is missing is named, several at once do not disturb each other.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { fetchSource, missingPackages } from '../../harness/adapters/apt.ts';
import { exec } from '../../harness/adapters/exec.ts';
import { withLock } from '../../harness/adapters/flock.ts';
import { packagesFor } from '../../harness/setup/packages.ts';
import { cudapool, inRoot, tempDir } from '../support/index.ts';

t.test('packages that are missing', async (t) => {
  t.same(await missingPackages(['dpkg', 'no-such-package-at-all']), ['no-such-package-at-all']);
  t.same(await missingPackages(['dpkg']), []);
  for (const name of packagesFor.use) t.ok(packagesFor.demo.includes(name) && packagesFor.test.includes(name), name);
});

/** Tools of our own, first in PATH. */
function fakeTools(t: import('tap').Test, tools: Record<string, string>): { PATH: string } {
  const dir = tempDir(t);
  for (const [name, script] of Object.entries(tools))
    writeFileSync(join(dir, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return { PATH: `${dir}:${process.env.PATH}` };
}

t.test('a dry run prints the apt commands', async (t) => {
  const env = fakeTools(t, { 'dpkg-query': 'echo "gcc installed"; exit 1' });
  const ran = await cudapool(['setup', '--for', 'use', '--dry-run'], { env });
  if (process.geteuid?.() === 0) {
    t.equal(ran.exitCode, 0);
    t.match(ran.stdout, /apt-get update\n.*apt-get install --yes --no-install-recommends libc6-dev make python3/);
  } else t.equal(ran.exitCode, 3);
});

t.test('without root it names the command', async (t) => {
  const tools = fakeTools(t, { 'dpkg-query': 'exit 1' });
  const ran = await cudapool(['setup', '--for', 'use'], { env: { ...tools, NODE_OPTIONS: `--import ${asUser(t)}` } });
  t.equal(ran.exitCode, 3);
  t.match(ran.stderr, /sudo apt-get install gcc/);
});

/** A module that makes the process believe that it is not root. */
function asUser(t: import('tap').Test): string {
  const file = join(tempDir(t), 'user.mjs');
  writeFileSync(file, 'process.geteuid = () => 1000;\n');
  return file;
}

t.test('not a Debian', async (t) => {
  const dir = tempDir(t);
  mkdirSync(join(dir, 'bin'));
  await exec('ln', ['-s', process.execPath, '/bin/sh', '/bin/dirname', '/bin/readlink', join(dir, 'bin')], {
    timeoutMs: 1000,
  });
  const ran = await cudapool(['setup', '--for', 'use'], { env: { PATH: join(dir, 'bin') } });
  t.equal(ran.exitCode, 3);
  t.match(ran.stderr, /ERR_CUDAPOOL_NOT_DEBIAN/);
  t.match(ran.stderr, /hint:.*--no-packages/);
});

t.test('set up already: nothing is run', async (t) => {
  const env = fakeTools(t, { 'apt-get': 'echo "apt-get must not run" >&2; exit 1', make: 'exit 1' });
  const ran = await cudapool(['setup', '--for', 'use', '--json'], { env });
  t.equal(ran.exitCode, 0, ran.stderr);
  t.match(JSON.parse(ran.stdout), { schema: 'cudapool.setup/1', packages: [], native: false, criu: [] });
  t.match(ran.stderr, /everything is set up/);
});

t.test('sources: kept once they are there, and a version that Debian does not have', async (t) => {
  const dir = tempDir(t);
  writeFileSync(join(dir, 'criu_4.2.1.orig.tar.xz'), 'kept');
  const kept = await fetchSource({ source: 'criu', version: '4.2.1', suite: 'sid', dir });
  t.equal(readFileSync(kept, 'utf8'), 'kept');
  const tools = fakeTools(t, { 'apt-get': 'exit 0', 'apt-cache': 'printf "Package: criu\\nVersion: 4.9-1\\n"' });
  const path = process.env.PATH;
  t.teardown(() => {
    process.env.PATH = path;
  });
  process.env.PATH = tools.PATH;
  await t.rejects(fetchSource({ source: 'criu', version: '4.2.1', suite: 'sid', dir: tempDir(t) }), {
    code: 'ERR_CUDAPOOL_NO_SOURCE',
    hint: /4\.9-1.*--criu-src/,
  });
});

t.test('one at a time', async (t) => {
  const file = join(tempDir(t), 'lock');
  const order: string[] = [];
  const work = (name: string) =>
    withLock(file, async () => {
      order.push(`${name} begins`);
      await sleep(50);
      order.push(`${name} ends`);
      return name;
    });
  t.same((await Promise.all([work('a'), work('b')])).sort(), ['a', 'b']);
  t.equal(order[0]?.[0], order[1]?.[0], 'the one that began ended before the other began');
  await t.rejects(
    withLock(file, async () => {
      throw new Error('in between');
    }),
    /in between/,
  );
  t.equal(await work('c'), 'c', 'an error releases the lock');
});

t.test('the lockfile names no registry of one machine', (t) => {
  const lock = readFileSync(inRoot('package-lock.json'), 'utf8');
  for (const [, url] of lock.matchAll(/"resolved": "([^"]*)"/g)) t.match(url, /^https:\/\/registry\.npmjs\.org\//);
  t.ok(existsSync(inRoot('node_modules', 'commander')));
  t.end();
});
