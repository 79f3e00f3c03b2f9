// SPDX-License-Identifier: MIT
// What dies or fails in the midst of a dump or a restore costs no application and no checkpoint.
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import t from 'tap';
import { poolState } from '../../harness/adapters/cudapoold.ts';
import type { ActionResult } from '../../harness/container/actions.ts';
import type { Lab } from '../../harness/container/lab.ts';
import { poolReport } from '../../harness/container/pool-process.ts';
import type { CudapoolError } from '../../harness/errors.ts';
import { inRoot, until } from '../support/index.ts';
import { criuProcesses, labFor, verify } from './support.ts';

/** The action's end, whichever way. */
const settled = (action: Promise<ActionResult>): Promise<{ ok?: ActionResult; failed?: CudapoolError }> =>
  action.then(
    (ok) => ({ ok }),
    (failed: CudapoolError) => ({ failed }),
  );

for (const processes of [1, 3]) {
  t.test(
    `a failing GPU restore of ${processes} process(es) fails within a second, and the next one works`,
    async (t) => {
      const lab = await labFor(t);
      await lab.startPool();
      const workload = await lab.start({ memoryMib: 1, processes });
      await lab.checkpoint(workload);
      let began = performance.now();
      await lab.restore(workload);
      const good = performance.now() - began; // podman's own part and CRIU's, which a failing restore has as well
      await verify(t, workload, 1, 'a good one');
      await workload.kill();
      for (let i = 1; i <= 2; i++) {
        lab.faults('restore=1');
        began = performance.now();
        const { failed } = await settled(lab.restore(workload));
        const more = performance.now() - began - good;
        t.equal(failed?.code, 'ERR_CUDAPOOL_RESTORE', `${i}: it fails`);
        t.match(failed?.lines.join('\n'), /cuda_plugin: /, `${i}: in CRIU's own words`);
        t.ok(more < 1000 + good, `${i}: it takes ${Math.round(more)} ms more than a good one's ${Math.round(good)} ms`);
        t.equal(await workload.pid(), 0, `${i}: nothing runs`);
        lab.faults('');
      }
      t.equal((await lab.restore(workload)).path, 'pool');
      await verify(t, workload, 1, 'afterwards');
    },
  );
}

t.test('a failing dump: the application runs on', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 1, processes: 2 });
  const pid = await workload.pid();
  for (const action of ['lock', 'checkpoint']) {
    lab.faults(`${action}=1`);
    const { failed } = await settled(lab.checkpoint(workload));
    t.equal(failed?.code, 'ERR_CUDAPOOL_CHECKPOINT', `${action}: it fails`);
    lab.faults('');
    t.equal(await workload.pid(), pid, `${action}: it runs`);
    await verify(t, workload, 1, action);
  }
  await lab.checkpoint(workload);
  await lab.restore(workload);
  await verify(t, workload, 1, 'the next dump works');
});

t.test('the pool is killed before a restore: another one is started', async (t) => {
  const lab = await labFor(t);
  const pool = await lab.startPool();
  const workload = await lab.start({ memoryMib: 1 });
  await lab.checkpoint(workload);
  await pool.stop('SIGKILL');
  const restored = await lab.restore(workload);
  t.equal(restored.path, 'pool', restored.why);
  await verify(t, workload, 1, 'afterwards');
  t.match(await poolState(lab.poolPlace()), { running: true });
});

/** How long the driver is busy with the first action that it is told to be slow with. */
const BUSY_MS = 1500;

/** Returns when the driver has been busy for a while with what the fault makes slow: other actions take microseconds. */
async function busy(lab: Lab): Promise<void> {
  let seen = 0;
  await until('the driver is busy', async () => {
    const actions = (await poolReport(lab.poolPlace()))?.actions as { running?: number } | undefined;
    seen = (actions?.running ?? 0) > 0 ? seen + 1 : 0;
    return seen === 3;
  });
}

// Whether the plugin can go on by itself depends on how far the driver is. What must hold is that it says what is so.

t.test('the pool is killed during the dump', async (t) => {
  const lab = await labFor(t);
  const pool = await lab.startPool();
  const workload = await lab.start({ memoryMib: 1, processes: 2 });
  lab.faults(`checkpoint=hang:${BUSY_MS}@1`);
  const dump = settled(lab.checkpoint(workload));
  await busy(lab);
  await pool.stop('SIGKILL');
  const { ok, failed } = await dump;
  lab.faults('');
  if (failed !== undefined) {
    t.equal(failed.code, 'ERR_CUDAPOOL_CHECKPOINT', 'the dump failed');
    await verify(t, workload, 1, 'the application runs on');
    await lab.checkpoint(workload);
  } else {
    t.equal(ok?.path, 'stock', `the dump went on without the pool: ${ok?.why}`);
    t.equal(await workload.pid(), 0, 'and the container is stopped');
  }
  await lab.restore(workload);
  await verify(t, workload, 1, 'it can be restored');
});

t.test('the pool is killed during the restore', async (t) => {
  const lab = await labFor(t);
  const pool = await lab.startPool();
  const workload = await lab.start({ memoryMib: 1, processes: 2 });
  await lab.checkpoint(workload);
  lab.faults(`restore=hang:${BUSY_MS}@1`);
  const restore = settled(lab.restore(workload));
  await busy(lab);
  await pool.stop('SIGKILL');
  const { ok, failed } = await restore;
  lab.faults('');
  if (failed !== undefined) {
    t.equal(failed.code, 'ERR_CUDAPOOL_RESTORE', 'the restore failed');
    t.equal(await workload.pid(), 0, 'nothing runs');
    await lab.restore(workload);
  } else {
    t.equal(ok?.path, 'stock', `the restore went on without the pool: ${ok?.why}`);
  }
  await verify(t, workload, 1, 'it is restored');
});

t.test('CRIU is killed during the dump: the application runs on', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 1, processes: 2 });
  const pid = await workload.pid();
  lab.faults(`checkpoint=hang:${BUSY_MS}@1`);
  const dump = settled(lab.checkpoint(workload));
  await busy(lab);
  const criu = criuProcesses(lab);
  t.not(criu.length, 0);
  for (const each of criu) process.kill(each, 'SIGKILL');
  t.equal((await dump).failed?.code, 'ERR_CUDAPOOL_CHECKPOINT');
  lab.faults('');
  t.equal(await workload.pid(), pid);
  await verify(t, workload, 1, 'it runs on');
  await lab.checkpoint(workload);
  await lab.restore(workload);
  await verify(t, workload, 1, 'and it can be dumped and restored');
});

t.test('an interrupted restore: nothing is left, and the next one works', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 1, processes: 2 });
  await lab.checkpoint(workload);
  const shared = [...lab.podman.globals.map((arg) => `--podman-arg=${arg}`), `--criu=${lab.criu.tree}`];
  for (const when of ['early', 'late']) {
    lab.faults(when === 'late' ? 'restore=hang:3000' : '');
    const child = spawn(inRoot('bin', 'cudapool'), ['restore', '--keep', ...shared, workload.name], {
      env: { ...process.env, NODE_OPTIONS: undefined, ...lab.podman.env, ...lab.env },
      stdio: 'ignore',
    });
    const ended = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)));
    await until(`${when}: CRIU works`, () => criuProcesses(lab).length > 0, 20_000, 2);
    if (when === 'late') await busy(lab); // the driver restores
    child.kill('SIGINT');
    t.equal(await ended, 130, `${when}: it says so`);
    lab.faults('');
    t.same(criuProcesses(lab), [], `${when}: CRIU has ended`);
    t.same(runs(workload.dir), [], `${when}: what it had restored has ended`);
    t.equal((await lab.restore(workload)).path, 'pool', `${when}: the next one works`);
    await verify(t, workload, 1, when);
    await workload.kill();
  }
});

/** The processes of a workload. */
function runs(dir: string): string[] {
  return readdirSync('/proc').filter((entry) => {
    try {
      return /^\d+$/.test(entry) && readFileSync(`/proc/${entry}/cmdline`, 'utf8').includes(`gpu_app\0--dir=${dir}`);
    } catch {
      return false; // it has ended meanwhile
    }
  });
}
