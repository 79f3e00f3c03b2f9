// SPDX-License-Identifier: MIT
// The command itself: exit codes, what goes to stdout and stderr, errors as JSON.
import { existsSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cudapool, inRoot, tempDir } from '../support/index.ts';

const usage: readonly { name: string; args: string[]; says: RegExp }[] = [
  { name: 'unknown command', args: ['frob'], says: /unknown command 'frob'/ },
  { name: 'unknown option', args: ['check', '--frob'], says: /unknown option '--frob'/ },
  { name: 'missing option', args: ['patch', 'apply'], says: /required option '--criu-src/ },
  { name: 'no such folder', args: ['build', '--criu-src', '/nonexistent'], says: /\/nonexistent is not a folder/ },
  { name: 'number out of bounds', args: ['build', '--jobs', '0'], says: /whole number from 1 to/ },
  { name: 'number that is none', args: ['pool', 'start', '--idle', '1e3'], says: /whole number from 0 to/ },
  { name: 'choice', args: ['build', '--criu-version', '3.17'], says: /Allowed choices are/ },
  { name: 'contradiction', args: ['build', '--criu-src', '/', '--criu-version', '4.2.1'], says: /exclude each other/ },
];

for (const { name, args, says } of usage) {
  t.test(`usage error: ${name}`, async (t) => {
    const ran = await cudapool(args);
    t.equal(ran.exitCode, 2);
    t.match(ran.stderr, says);
    t.equal(ran.stdout, '', 'nothing on stdout');
  });
}

t.test('version and help are data', async (t) => {
  const { version } = JSON.parse(readFileSync(inRoot('package.json'), 'utf8')) as { version: string };
  const shown = await cudapool(['--version']);
  t.same([shown.exitCode, shown.stdout.trim(), shown.stderr], [0, version, '']);
  const help = await cudapool(['--help']);
  t.equal(help.exitCode, 0);
  for (const name of ['setup', 'check', 'patch', 'build', 'run', 'checkpoint', 'restore', 'status', 'bench', 'demo']) {
    t.match(help.stdout, new RegExp(`^  ${name}\\b`, 'm'), name);
  }
});

t.test('with --json an error is a document on stdout, too', async (t) => {
  const dir = tempDir(t);
  const ran = await cudapool(['patch', 'verify', '--criu-src', dir, '--json']);
  t.equal(ran.exitCode, 1);
  const { error } = JSON.parse(ran.stdout) as { error: Record<string, string> };
  t.match(error, { code: 'ERR_CUDAPOOL_NOT_CRIU', message: /Makefile\.versions/, hint: /folder/ });
  t.match(ran.stderr, /hint:/);
});

t.test('with --json a usage error is one, too', async (t) => {
  for (const args of [
    ['frob', '--json'],
    ['status', '--pid', 'x', '--json'],
    ['restore', '--frob', '--json'],
  ]) {
    const ran = await cudapool(args);
    t.equal(ran.exitCode, 2);
    const { error } = JSON.parse(ran.stdout) as { error: Record<string, string> };
    t.equal(error.code, 'ERR_CUDAPOOL_USAGE', args.join(' '));
  }
});

t.test('with --json a dry run is one document', async (t) => {
  const dry = await cudapool(['bench', 'micro', 'tree', '--dry-run', '--json']);
  t.equal(dry.exitCode, 0);
  const { schema, commands } = JSON.parse(dry.stdout) as { schema: string; commands: string[] };
  t.equal(schema, 'cudapool.dry-run/1');
  t.equal(commands.length, 2);
});

t.test('every command has examples, and they name it', async (t) => {
  const listed = async (path: string[]): Promise<void> => {
    const { stdout } = await cudapool([...path, '--help']);
    const below = [...(/^Commands:\n([\s\S]*)/m.exec(stdout)?.[1] ?? '').matchAll(/^ {2}(\w+)/gm)].map(
      ([, name]) => name ?? '',
    );
    if (path.length > 0 && below.length === 0) {
      t.match(stdout, new RegExp(`^Examples:\\n {2}cudapool ${path.join(' ')}\\b`, 'm'), path.join(' '));
    }
    await Promise.all(below.filter((name) => name !== 'help').map((name) => listed([...path, name])));
  };
  await listed([]);
});

t.test('a reader that goes away is no defect', async (t) => {
  const { exec } = await import('../../harness/adapters/exec.ts');
  const ran = await exec('sh', ['-c', '"$0" patch diff --help 2>&1 | true', inRoot('bin', 'cudapool')], {
    timeoutMs: 20_000,
  });
  t.equal(ran.exitCode, 0);
  const many = await exec(
    'sh',
    ['-c', '{ "$0" options; echo "ended with $?" >&2; } | head -1', inRoot('bin', 'cudapool')],
    {
      timeoutMs: 20_000,
    },
  );
  t.match(many.stderr, /^ended with 0$/m);
  t.notMatch(many.stderr, /EPIPE/);
});

t.test('no colours where stderr is no terminal', async (t) => {
  const ran = await cudapool(['patch', 'verify', '--criu-src', tempDir(t)]);
  t.notMatch(ran.stderr, '\u001b[');
});

t.test('through a symbolic link, from another folder', async (t) => {
  const dir = tempDir(t);
  symlinkSync(inRoot('bin', 'cudapool'), join(dir, 'cudapool'));
  const { exec } = await import('../../harness/adapters/exec.ts');
  const ran = await exec(join(dir, 'cudapool'), ['--version'], { timeoutMs: 20_000, cwd: dir });
  t.match(ran.stdout, /^\d+\.\d+\.\d+\n?$/);
});

t.test('without node it says so', async (t) => {
  const dir = tempDir(t);
  for (const tool of ['sh', 'dirname', 'readlink']) symlinkSync(`/bin/${tool}`, join(dir, tool));
  if (!existsSync('/bin/readlink')) t.fail('/bin/readlink is where Debian has it');
  const ran = await cudapool(['--version'], { env: { PATH: dir } });
  t.equal(ran.exitCode, 3);
  t.match(ran.stderr, /needs Node\.js 20/);
});

t.test('a start that finds everything in place costs little', async (t) => {
  // Processor time, the least of five: what the clock shows depends on what else the machine does.
  const { exec } = await import('../../harness/adapters/exec.ts');
  const costs: number[] = [];
  for (let i = 0; i < 5; i++) {
    const { stdout } = await exec('sh', ['-c', '"$0" --version >/dev/null; times', inRoot('bin', 'cudapool')], {
      timeoutMs: 60_000,
      env: { NODE_OPTIONS: undefined },
    });
    const children = [...(stdout.split('\n')[1] ?? '').matchAll(/(\d+)m([\d.]+)s/g)];
    costs.push(children.reduce((sum, [, minutes, seconds]) => sum + Number(minutes) * 60 + Number(seconds), 0));
  }
  t.comment(`${costs.join(', ')} s`);
  const least = Math.min(...costs);
  t.ok(least > 0.02 && least < 0.6, 'two tenths of a second on an idle machine, some more on a busy one');
});
