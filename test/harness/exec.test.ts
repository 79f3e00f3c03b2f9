// SPDX-License-Identifier: MIT
// The one way in which external programs are run: failures, limits, dry runs.
import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import {
  cancelAll,
  exec,
  isDryRun,
  lastLines,
  look,
  quote,
  recordedCommands,
  setDryRun,
  which,
} from '../../harness/adapters/exec.ts';
import { tempDir } from '../support/index.ts';

const sh = (script: string): readonly [string, string[]] => ['sh', ['-c', script]];

t.test('what it printed, and how long it took', async (t) => {
  const lines: string[] = [];
  const ran = await exec(...sh('echo one; echo two >&2; sleep 0.05; cat'), {
    timeoutMs: 5000,
    input: 'three\n',
    onLine: (line, stream) => lines.push(`${stream} ${line}`),
  });
  t.match(ran, { exitCode: 0, stdout: 'one\nthree', stderr: 'two', dry: false });
  t.ok(ran.wall_ms >= 50);
  t.same(lines.sort(), ['stderr two', 'stdout one', 'stdout three']);
});

t.test('a failure keeps code, output and the last lines', async (t) => {
  const failing = sh('seq 1 100; echo why >&2; exit 7');
  await t.rejects(exec(...failing, { timeoutMs: 5000 }), {
    code: 'ERR_CUDAPOOL_COMMAND',
    message: /exit code 7/,
    lines: ['why'],
    details: { exitCode: 7, stdout: /^1\n2\n/ },
  });
  t.match(await exec(...failing, { timeoutMs: 5000, reject: false }), { exitCode: 7, stderr: 'why' });
});

t.test('a signal is named', async (t) => {
  await t.rejects(exec(...sh('kill -KILL $$'), { timeoutMs: 5000 }), { message: /killed by SIGKILL/ });
});

t.test('a program that is too slow is ended', async (t) => {
  const started = performance.now();
  await t.rejects(exec(...sh('echo begun; sleep 30'), { timeoutMs: 200, reject: false }), {
    code: 'ERR_CUDAPOOL_TIMEOUT',
    lines: ['begun'],
  });
  t.ok(performance.now() - started < 15_000, 'with what it started');
});

t.test('a missing program names its package, exit code 3', async (t) => {
  await t.rejects(exec('no-such-tool', [], { timeoutMs: 1000, package: 'tool-package' }), {
    code: 'ERR_CUDAPOOL_TOOL_MISSING',
    hint: 'apt-get install tool-package',
    exit: 3,
  });
});

t.test('a file that cannot be executed is not called missing', async (t) => {
  const file = join(tempDir(t), 'tool');
  writeFileSync(file, 'no program');
  chmodSync(file, 0o755);
  const failed = await exec(file, [], { timeoutMs: 1000 }).catch((thrown: unknown) => thrown);
  t.match(failed, { code: 'ERR_CUDAPOOL_COMMAND' });
});

t.test('output is bounded', async (t) => {
  await t.rejects(exec('head', ['-c', '100000', '/dev/zero'], { timeoutMs: 5000, maxOutput: 1000 }), {
    code: 'ERR_CUDAPOOL_COMMAND',
  });
});

t.test('a dry run prints and runs only what looks', async (t) => {
  setDryRun(true);
  t.teardown(() => setDryRun(false));
  const file = join(tempDir(t), 'made');
  const printed = t.capture(process.stdout, 'write', () => true);
  const ran = await exec('touch', [file, 'it is'], { timeoutMs: 1000, env: { A: 'b c' }, cwd: '/tmp' });
  printed.restore();
  t.match(ran, { dry: true, exitCode: 0 });
  t.equal((await look('echo', ['seen'])).stdout, 'seen');
  t.ok(isDryRun());
  t.same(recordedCommands(), [`cd /tmp && A='b c' touch ${file} 'it is'`]);
  t.same(printed.args()[0], [`${recordedCommands()[0]}\n`]);
  await t.rejects(look('test', ['-e', file]));
});

t.test('quote gives what a shell takes apart again', async (t) => {
  const args = ['plain', "it's", '$HOME `x` "y"', '', '*', 'a=b'];
  const { stdout } = await exec('sh', ['-c', `printf '%s\\n' ${quote(args)}`], { timeoutMs: 1000 });
  t.same(stdout.split('\n'), args);
});

t.test('which', (t) => {
  t.equal(which('sh', '/nonexistent:/bin'), '/bin/sh');
  t.equal(which('sh', '/nonexistent'), undefined);
  t.equal(which('/bin/sh', ''), '/bin/sh');
  t.end();
});

t.test('lastLines', (t) => {
  t.same(lastLines('a\n\nb \nc\n', 2), ['b', 'c']);
  t.end();
});

// Last: it cannot be taken back.
t.test('an interruption ends what runs, exit code 130, and nothing starts afterwards', async (t) => {
  const running = exec('sleep', ['30'], { timeoutMs: 60_000 });
  setTimeout(cancelAll, 50);
  await t.rejects(running, { code: 'ERR_CUDAPOOL_INTERRUPTED', message: 'interrupted' });
  await t.rejects(exec('true', [], { timeoutMs: 1000 }), { code: 'ERR_CUDAPOOL_INTERRUPTED' });
});
