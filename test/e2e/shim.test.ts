// SPDX-License-Identifier: MIT
// Containers with the shim: a context warmed after a restore, and LD_PRELOAD where it does nothing.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { shimReport } from '../../harness/adapters/cudapoold.ts';
import { inspectContainer, podman } from '../../harness/adapters/podman.ts';
import { ask } from '../../harness/container/ask.ts';
import type { Workload } from '../../harness/container/lab.ts';
import { makeRootfs, PROGRAM_DIR } from '../../harness/container/rootfs.ts';
import { built } from '../../harness/paths.ts';
import { cudapool, unique, until } from '../support/index.ts';
import { labFor, verify } from './support.ts';

t.test('dumped before it ever used CUDA: a context is warm after the restore', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ when: 'ask', shim: true, memoryMib: 1 });
  await lab.checkpoint(workload);
  for (let i = 1; i <= 3; i++) {
    const restored = await lab.restore(workload);
    t.equal(restored.shim?.state, 'present');
    const pid = await workload.pid();
    const report = await until(
      `${i}: the shim has warmed a context`,
      async () => {
        const said = await shimReport(pid, lab.poolPlace());
        return said.warmth === 'context' ? said : false;
      },
      5000,
    );
    t.match(report, { restores: 1, handed_back: 0 }, `${i}: what the shim says`);
    const { answers } = await verify(t, workload, 1, `${i}`);
    t.ok((answers[0]?.first_call_us ?? 0) > 0, `${i}: that was its first call`);
    t.match(
      await shimReport(pid, lab.poolPlace()),
      { warmth: 'taken', handed_back: 1, created: 0 },
      `${i}: handed back`,
    );
    await workload.kill();
  }
});

t.test('asked at once after the restore: the same answer', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ when: 'ask', shim: true, memoryMib: 1, processes: 2 });
  await lab.checkpoint(workload);
  await lab.restore(workload);
  await verify(t, workload, 1, 'at once');
});

t.test('with the shim, CUDA in use: several checkpoints and restores', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ shim: true, memoryMib: 2, processes: 2 });
  for (let i = 1; i <= 3; i++) {
    t.equal((await lab.checkpoint(workload)).path, 'pool');
    t.equal((await lab.restore(workload)).path, 'pool');
    await verify(t, workload, 2, `${i}`);
  }
});

t.test('LD_PRELOAD on the restore itself is inert, and said so', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 1 });
  await lab.checkpoint(workload);
  const args = [...lab.podman.globals.map((arg) => `--podman-arg=${arg}`), `--criu=${lab.criu.tree}`, '--keep'];
  const restored = await cudapool(['restore', ...args, workload.name], {
    env: {
      ...lab.podman.env,
      ...lab.env,
      PATH: `${built.softcudaBin}:${process.env.PATH}`,
      LD_PRELOAD: built.shim,
      CUDAPOOL_WARM: 'start:podman,runc,criu,conmon,node',
      CUDAPOOL_LOG_FILE: join(lab.dir, 'preload.log'),
    },
  });
  t.equal(restored.exitCode, 0, restored.stderr);
  t.match(restored.stderr, /LD_PRELOAD of this command reaches podman/);
  t.match(restored.stderr, /created without the shim.*cudapool run -- podman run/);
  await verify(t, workload, 1, 'restored');
  await t.rejects(shimReport(await workload.pid(), lab.poolPlace()), { code: 'ERR_CUDAPOOL_NO_SHIM' });
});

t.test('a container that `cudapool run` has started', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const [name, dir, rootfs] = [unique('run'), join(lab.dir, 'asked'), join(lab.dir, 'own-rootfs')];
  mkdirSync(dir);
  const loadsLater = [built.shim, join(built.softcudaLib, 'libcuda.so.1')];
  await makeRootfs({ dir: rootfs, program: join(built.workloads, 'gpu_app'), loadsLater });
  const start = ['run', '--detach', '--name', name, '--network=none', `--volume=${dir}:${dir}`, '--rootfs', rootfs];
  const ran = await cudapool(
    [
      ...['run', '--software-driver', join(lab.dir, 'softcuda'), '--', 'podman', ...lab.podman.globals, ...start],
      ...[join(PROGRAM_DIR, 'gpu_app'), `--dir=${dir}`, '--memory=1', '--when=ask', '--seed=1'],
    ],
    { env: { ...lab.podman.env, ...lab.env } },
  );
  t.equal(ran.exitCode, 0, ran.stderr);
  t.match(ran.stdout, /^[0-9a-f]{64}$/, 'podman prints the id');
  await until('READY', async () => (await podman(lab.podman, ['logs', name])).stdout.includes('READY'));
  const workload: Workload = {
    name,
    dir,
    processes: 1,
    ask: (options) => ask(dir, { processes: 1, ...options }),
    pid: async () => (await inspectContainer(lab.podman, name)).pid,
    kill: async () => void (await podman(lab.podman, ['kill', name])),
  };
  await lab.checkpoint(workload);
  const restored = await lab.restore(workload);
  t.equal(restored.shim?.state, 'present');
  const pid = await workload.pid();
  await until('the shim has warmed a context', async () => {
    const { warmth } = await shimReport(pid, lab.poolPlace());
    return warmth === 'context';
  });
  await verify(t, workload, 1, 'restored');
  t.match(await shimReport(pid, lab.poolPlace()), { warmth: 'taken', handed_back: 1 }, 'handed back');
});

t.test('cudapool run', async (t) => {
  const lab = await labFor(t);
  const env = { ...lab.podman.env, ...lab.env };
  const inside = ['sh', '-c', 'echo "$LD_PRELOAD"; exit 7'];
  const plain = await cudapool(['run', '--warm', 'never', '--', ...inside], { env });
  t.equal(plain.exitCode, 7, "the child's exit code");
  t.equal(plain.stdout, built.shim);
  const killed = await cudapool(['run', '--', 'sh', '-c', 'kill -TERM $$'], { env });
  t.equal(killed.exitCode, 143, '128 and the signal');
  const missing = await cudapool(['run', '--', 'no-such-program'], { env });
  t.match(missing, { exitCode: 1, stderr: /no-such-program cannot be run: no such program/ });
  const ps = await cudapool(['run', '--', 'podman', 'ps'], { env });
  t.match(ps, { exitCode: 2, stderr: /the shim is for applications/ });
  const dry = await cudapool(['run', '--dry-run', '--', 'podman', ...lab.podman.globals, 'run', '--rm', 'image'], {
    env,
  });
  t.equal(dry.exitCode, 0, dry.stderr);
  t.match(
    dry.stdout,
    /^podman --root.* run --volume (\S+):\1:ro --env LD_PRELOAD=\1\/[0-9a-f]+\/libcudapool\.so --rm image$/,
  );
});
