// SPDX-License-Identifier: MIT
// That nothing which is executed goes unseen: the kernel's events, and what is made of them.
import { copyFileSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { executedUnder, type ProcEvent, watchProcesses } from '../../harness/adapters/proc-watch.ts';
import { built, isRoot, skipUnless, tempDir } from '../support/index.ts';

t.test("descendants of ours are counted, other people's not", async (t) => {
  const events: ProcEvent[] = [
    { kind: 'fork', parent: 5, pid: 10 }, // ours
    { kind: 'exec', pid: 10, name: 'dash' }, // a wrapper, which becomes:
    { kind: 'exec', pid: 10, name: 'criu' },
    { kind: 'ran', pid: 11 },
    { kind: 'fork', parent: 10, pid: 11 },
    { kind: 'exec', pid: 11, name: '?' },
    { kind: 'fork', parent: 11, pid: 12 },
    { kind: 'exec', pid: 12, name: 'sh' },
    { kind: 'exit', pid: 11 },
    { kind: 'fork', parent: 6, pid: 20 }, // somebody else's
    { kind: 'exec', pid: 20, name: 'criu' },
    { kind: 'fork', parent: 20, pid: 21 },
    { kind: 'ran', pid: 21 },
    { kind: 'exec', pid: 21, name: 'cuda-checkpoint' },
    { kind: 'fork', parent: 6, pid: 12 }, // the number again, for another
    { kind: 'exec', pid: 12, name: 'ls' },
    { kind: 'exit', pid: 10 },
    { kind: 'fork', parent: 5, pid: 13 },
    { kind: 'exec', pid: 13, name: 'ls' }, // ours, but not under criu
  ];
  t.same(executedUnder({ events, lost: false }, 5, 'criu'), { watched: 1, names: ['?', 'sh'] });
});

t.test('the kernel tells of a program that lives for a millisecond', async (t) => {
  const program = join(built.workloads, 'proc_watch');
  if (!skipUnless(t, isRoot && existsSync(program), 'needs root, and proc_watch built')) return;
  const brief = join(tempDir(t), 'brief');
  copyFileSync('/bin/true', brief);
  const watch = await watchProcesses([brief]);
  await exec('sh', ['-c', `${brief}; ${brief}; exec ${brief}`], { timeoutMs: 5000 });
  const report = await watch.stop();
  t.notOk(report.lost);
  t.equal(executedUnder(report, process.pid, 'criu').watched, 3);
  t.equal(executedUnder(report, 1 << 30, 'criu').watched, 0, 'by nobody else');
});

t.test('a file that cannot be watched is an error', async (t) => {
  if (!skipUnless(t, isRoot && existsSync(join(built.workloads, 'proc_watch')), 'needs root, and proc_watch built'))
    return;
  await t.rejects(watchProcesses(['/nonexistent']), { code: 'ERR_CUDAPOOL_PROC_WATCH', message: /nonexistent/ });
});
