// SPDX-License-Identifier: MIT
// podman, runc, the patched CRIU, the pool and the software driver: containers go and come back with what they held.
import t from 'tap';
import { poolState } from '../../harness/adapters/cudapoold.ts';
import { labFor, verify } from './support.ts';

t.test('five checkpoints and restores in a row', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 4 });
  for (let i = 1; i <= 5; i++) {
    const dumped = await lab.checkpoint(workload);
    t.equal(dumped.path, 'pool', `${i}: dumped by the pool (${dumped.why})`);
    t.equal(await workload.pid(), 0, `${i}: the container is stopped`);
    const restored = await lab.restore(workload);
    t.equal(restored.path, 'pool', `${i}: restored by the pool (${restored.why})`);
    t.ok(restored.criu.reached, `${i}: the environment reached CRIU`);
    t.ok((restored.podman?.runtime_ms ?? 0) > 0, `${i}: podman's figure`);
    t.equal(restored.shim?.state, 'absent');
    const { answers } = await verify(t, workload, 4, `${i}`);
    t.equal(answers[0]?.counter, 1 + i, `${i}: host memory, too`);
  }
});

t.test('one checkpoint restored five times, the state of the checkpoint each time', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 2 });
  await lab.checkpoint(workload);
  for (let i = 1; i <= 5; i++) {
    t.equal((await lab.restore(workload)).path, 'pool');
    const { answers } = await verify(t, workload, 2, `${i}`);
    t.equal(answers[0]?.counter, 2, `${i}: as it was when it was dumped`);
    await workload.ask({ seed: 99 });
    await workload.kill();
  }
});

t.test('a tree of processes, at once and one after another, and with created contexts', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 2, processes: 4, api: 'create' });
  for (const parallel of [undefined, true, false]) {
    await lab.checkpoint(workload, { parallel });
    t.equal((await lab.restore(workload, { parallel })).path, 'pool');
    await verify(t, workload, 2, `parallel: ${parallel}`);
  }
});

t.test('the pool is absent: the plugin starts one', async (t) => {
  const lab = await labFor(t);
  const workload = await lab.start({ memoryMib: 1 });
  t.match(await poolState(lab.poolPlace()), { running: false, absent: true });
  const dumped = await lab.checkpoint(workload);
  t.equal(dumped.path, 'pool', dumped.why);
  t.match(await poolState(lab.poolPlace()), { running: true });
  t.equal((await lab.restore(workload)).path, 'pool');
  await verify(t, workload, 1, 'after both');
});

t.test('the pool is absent and may not be started: as upstream, and said so', async (t) => {
  const lab = await labFor(t);
  const env = { CUDAPOOL_START: '0' };
  const workload = await lab.start({ memoryMib: 1 });
  const dumped = await lab.checkpoint(workload, { env });
  t.equal(dumped.path, 'stock');
  const restored = await lab.restore(workload, { env });
  t.equal(restored.path, 'stock');
  t.equal(restored.plugin_messages.filter((line) => /GPU context pool not available/.test(line)).length, 1, 'once');
  await verify(t, workload, 1, 'after both');
  t.match(await poolState(lab.poolPlace()), { running: false, absent: true });
});

t.test('the plugin is off, and upstream’s plugin', async (t) => {
  const lab = await labFor(t);
  const workload = await lab.start({ memoryMib: 1, processes: 2 });
  for (const options of [{ pool: false }, { plugin: 'stock' as const }]) {
    t.equal((await lab.checkpoint(workload, options)).path, 'stock');
    const restored = await lab.restore(workload, options);
    t.equal(restored.path, 'stock', restored.why);
    t.notOk(restored.plugin_messages.some((line) => /ENABLED/.test(line)));
    await verify(t, workload, 1, JSON.stringify(options));
  }
  t.match(await poolState(lab.poolPlace()), { running: false, absent: true }, 'nobody started a pool');
});

t.test('dumped with the pool, restored without; and the other way round', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 1 });
  await lab.checkpoint(workload);
  t.equal((await lab.restore(workload, { pool: false })).path, 'stock');
  await verify(t, workload, 1, 'restored without');
  await lab.checkpoint(workload, { pool: false });
  t.equal((await lab.restore(workload)).path, 'pool');
  await verify(t, workload, 1, 'restored with');
});

t.test('left running', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 1, processes: 2 });
  const pid = await workload.pid();
  await lab.checkpoint(workload, { podmanOptions: ['--keep', '--leave-running'] });
  t.equal(await workload.pid(), pid);
  await verify(t, workload, 1, 'runs on');
  await workload.kill();
  await lab.restore(workload);
  await verify(t, workload, 1, 'and restores');
});
