// SPDX-License-Identifier: MIT
// bin/cudapool in a clone: compiles what is due, once, also when several commands start together.
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { type ExecResult, exec } from '../../harness/adapters/exec.ts';
import { inRoot, isRoot, skipUnless, tempDir } from '../support/index.ts';

/** A clone with little in it; its npm packages are this tree's. */
function clone(t: import('tap').Test): string {
  const dir = join(tempDir(t), 'clone');
  for (const part of ['bin', 'package.json', 'package-lock.json', 'tsconfig.json']) {
    cpSync(inRoot(part), join(dir, part), { recursive: true });
  }
  mkdirSync(join(dir, 'harness'));
  mkdirSync(join(dir, 'test'));
  writeFileSync(join(dir, 'harness', 'cli.ts'), source('one'));
  symlinkSync(inRoot('node_modules'), join(dir, 'node_modules'));
  return dir;
}

const source = (says: string): string =>
  `export async function main(argv: string[]): Promise<number> { console.log('${says}', ...argv); return 7; }\n`;
const start = (dir: string, env: Record<string, string> = {}): Promise<ExecResult> =>
  exec(join(dir, 'bin', 'cudapool'), ['a', 'b c'], { timeoutMs: 60_000, reject: false, env });
const compilations = (ran: ExecResult): number => ran.stderr.split('compiling').length - 1;

t.test('compiles when something changed, and only then', async (t) => {
  const dir = clone(t);
  const first = await start(dir);
  t.match(first, { exitCode: 7, stdout: 'one a b c' });
  t.equal(compilations(first), 1);

  const second = await start(dir);
  t.match(second, { exitCode: 7, stdout: 'one a b c', stderr: '' });

  writeFileSync(join(dir, 'harness', 'cli.ts'), source('two'));
  const changed = await start(dir);
  t.match(changed, { stdout: 'two a b c' });

  writeFileSync(join(dir, 'test', 'x.test.ts'), 'export {};\n');
  await start(dir);
  t.ok(existsSync(join(dir, 'build', 'test', 'x.test.js')));
  rmSync(join(dir, 'test', 'x.test.ts'));
  const removed = await start(dir);
  t.equal(compilations(removed), 1);
  t.notOk(existsSync(join(dir, 'build', 'test', 'x.test.js')), 'what has no source any more is not run as a test');
});

t.test('a file with an older date than the build, new in the tree', async (t) => {
  const dir = clone(t);
  await start(dir);
  const file = join(dir, 'harness', 'cli2.ts');
  writeFileSync(file, source('old'));
  utimesSync(file, 1, 1);
  t.equal(compilations(await start(dir)), 1);
});

t.test('several at once compile once', async (t) => {
  const dir = clone(t);
  const ran = await Promise.all([1, 2, 3].map(() => start(dir)));
  for (const one of ran) t.match(one, { exitCode: 7, stdout: 'one a b c' });
  t.equal(
    ran.reduce((sum, one) => sum + compilations(one), 0),
    1,
  );
});

t.test('an error of the compiler is shown, and nothing runs', async (t) => {
  const dir = clone(t);
  writeFileSync(join(dir, 'harness', 'cli.ts'), 'export const = 1;\n');
  const ran = await start(dir);
  t.equal(ran.exitCode, 1);
  t.match(ran.stderr, /cli\.ts\(1,14\)/);
  t.equal(ran.stdout, '');
  writeFileSync(join(dir, 'harness', 'cli.ts'), source('mended'));
  t.match(await start(dir), { stdout: 'mended a b c' });
});

t.test('whoever may not write there is told so, in two lines', async (t) => {
  if (!skipUnless(t, isRoot, 'needs root, to be somebody else')) return;
  const dir = clone(t);
  for (const each of [join(dir, '..'), dir]) chmodSync(each, 0o755);
  const start = [process.execPath, join(dir, 'bin', 'launcher.mjs')];
  const nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', ...start];
  // tap's own option for node would write into this tree
  const ran = await exec('env', ['-u', 'NODE_OPTIONS', ...nobody], { timeoutMs: 30_000, reject: false });
  t.match(ran, { exitCode: 3, stdout: '', stderr: /^error: .* set up first.*\nhint: .*$/ });
});

t.test('packages are installed when the lockfile is another, by npm ci', async (t) => {
  const dir = clone(t);
  rmSync(join(dir, 'node_modules'));
  const tools = tempDir(t);
  const script = `#!/bin/sh\necho "npm $*" >>${join(tools, 'calls')}\nmkdir node_modules; ln -s ${inRoot('node_modules')}/* node_modules/\n`;
  writeFileSync(join(tools, 'npm'), script, { mode: 0o755 });
  const env = { PATH: `${tools}:${process.env.PATH}` };
  t.match(await start(dir, env), { exitCode: 7, stdout: 'one a b c' });
  t.match(await start(dir, env), { exitCode: 7, stderr: '' });
  t.match(readFileSync(join(tools, 'calls'), 'utf8'), /^npm ci [^\n]*\n$/, 'once');
  const lock = readFileSync(join(dir, 'package-lock.json'), 'utf8');
  writeFileSync(join(dir, 'package-lock.json'), `${lock}\n`);
  writeFileSync(join(tools, 'npm'), '#!/bin/sh\necho "no network" >&2; exit 1\n');
  const failed = await start(dir, env);
  t.equal(failed.exitCode, 1);
  t.match(failed.stderr, /no network/);
});
