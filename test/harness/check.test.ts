// SPDX-License-Identifier: MIT
// `cudapool check`: every requirement has a line, whatever is missing, and every one that is not met names its fix.
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import type { CheckLine } from '../../harness/check.ts';
import { builtCriu, cudapool, isRoot, skipUnless, softCuda, tempDir } from '../support/index.ts';

interface Report {
  schema: string;
  fit: boolean;
  checks: CheckLine[];
}

async function check(
  t: import('tap').Test,
  args: readonly string[] = [],
  env: Record<string, string | undefined> = {},
): Promise<Report & { exitCode: number; line(id: string): CheckLine }> {
  const config = join(tempDir(t), 'cudapool.conf');
  writeFileSync(config, '');
  const ran = await cudapool(['check', '--json', ...args], {
    env: { CUDAPOOL_CONFIG: config, CUDAPOOL_SOCKET: join(dirname(config), 'none.sock'), ...env },
  });
  const report = JSON.parse(ran.stdout) as Report;
  t.match(report, { schema: 'cudapool.check/1', fit: ran.exitCode === 0 });
  for (const { id, status, found, fix } of report.checks) {
    t.ok(found !== '', `${id}: says what was found`);
    if (status === 'bad') t.ok(fix, `${id}: names the fix`);
  }
  const line = (id: string): CheckLine => {
    const one = report.checks.find((candidate) => candidate.id === id);
    if (one === undefined) throw new Error(`no line ${id}`);
    return one;
  };
  return { ...report, exitCode: ran.exitCode, line };
}

t.test('this machine, with the software driver, is fit', async (t) => {
  if (!skipUnless(t, isRoot, 'needs root')) return;
  if (!skipUnless(t, builtCriu('4.2.1').ready, 'needs CRIU (cudapool setup --for test)')) return;
  const { env } = softCuda(t);
  const report = await check(t, ['--software'], env);
  t.same(
    report.checks.filter(({ status }) => status === 'bad'),
    [],
  );
  t.equal(report.exitCode, 0);
  t.match(report.line('criu-built').found, /4\.2\.1, \d+\.\d MiB$/, "the guide's prerequisite 1");
  t.match(report.line('criu-plugin').found, /cuda_plugin\.so: \d+(\.\d)? KiB$/, "the guide's prerequisite 2");
  t.match(report.line('cuda-h'), { status: 'ok', found: /^not needed/ }, "the guide's prerequisite 3");
  t.match(report.line('libcuda').found, /^CUDA \d+\.\d/);
  t.equal(report.line('cuda-checkpoint').found, `${env.PATH?.split(':')[0]}/cuda-checkpoint`);
});

t.test('as people read it', async (t) => {
  const ran = await cudapool(['check', '--software']);
  t.match(ran.stdout, /^ {2}(ok {2}|note|BAD |- {3}) {2}Linux /m);
  t.match(ran.stdout, /^This machine is (not )?fit/m);
  t.notMatch(ran.stdout, '\u001b[', 'no colours in a file');
  for (const [, fix] of ran.stdout.matchAll(/^ {2}BAD .*\n(.*)$/gm)) t.match(fix, /^ {8}fix: /);
});

t.test('a CRIU tree that is not built, and one with upstream plugin', async (t) => {
  const tree = tempDir(t);
  const empty = await check(t, ['--software', '--criu-src', tree]);
  t.equal(empty.exitCode, 3);
  t.match(empty.line('criu-built'), { status: 'bad', fix: `cudapool build --criu-src ${tree}` });
  t.match(empty.line('criu-check'), { status: 'skip' });
  mkdirSync(join(tree, 'plugins', 'cuda'), { recursive: true });
  writeFileSync(join(tree, 'plugins', 'cuda', 'cuda_plugin.so'), 'upstream');
  const stock = await check(t, ['--software', '--criu-src', tree]);
  t.match(stock.line('criu-plugin'), { status: 'bad', found: /upstream's/, fix: /patch apply.*&& cudapool build/ });
});

t.test('tools that are missing', async (t) => {
  const dir = tempDir(t);
  for (const tool of ['sh', 'dirname', 'readlink']) symlinkSync(`/bin/${tool}`, join(dir, tool));
  symlinkSync(process.execPath, join(dir, 'node'));
  const report = await check(t, ['--software'], { PATH: dir });
  t.equal(report.exitCode, 3);
  t.match(report.line('podman'), { status: 'bad', fix: 'apt-get install podman' });
  t.match(report.line('runtime'), { status: 'bad', fix: /apt-get install runc/ });
  t.match(report.line('network-lock'), { status: 'note', fix: /apt-get install iptables/ });
});

t.test('a damaged configuration file', async (t) => {
  const config = join(tempDir(t), 'cudapool.conf');
  const damage: readonly [content: string | Buffer, found: RegExp][] = [
    ['CRIU_CUDA_CONTEXT_POOL=yes\n', /cudapool\.conf:1.*0 or 1/],
    ['# fine\nCUDAPOOL_SOKET=/x\n', /:2.*CUDAPOOL_SOCKET/],
    ['CUDAPOOL_THREADS 4\n', /:1.*NAME=VALUE/],
    [Buffer.from([0x7f, 0x45, 0x4c, 0x46, 0]), /damaged/],
  ];
  for (const [content, found] of damage) {
    writeFileSync(config, content);
    const report = await check(t, ['--software'], { CUDAPOOL_CONFIG: config });
    t.match(report.line('configuration'), { status: 'bad', found });
    t.equal(report.exitCode, 3);
  }
});

t.test('settings, and where they come from', async (t) => {
  const config = join(tempDir(t), 'cudapool.conf');
  writeFileSync(config, 'CRIU_CUDA_CONTEXT_POOL=1\n');
  const file = await check(t, ['--software'], { CUDAPOOL_CONFIG: config });
  t.match(file.line('environment'), { status: 'ok', found: /1 in the configuration file/ });
  const shell = await check(t, ['--software'], { CRIU_CUDA_CONTEXT_POOL: '1' });
  t.match(shell.line('environment'), { status: 'note', found: /this shell/, fix: /cudapool restore/ });
  const preload = await check(t, ['--software'], { LD_PRELOAD: 'libcudapool-absent.so' });
  t.match(preload.line('preload'), { status: 'note', fix: /cudapool run/ });
});
