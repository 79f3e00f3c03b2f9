// SPDX-License-Identifier: MIT
// `cudapool checkpoint` and `cudapool restore` as they are typed; and a container that travels in an archive or an image.
import t from 'tap';
import { poolState } from '../../harness/adapters/cudapoold.ts';
import { inspectContainer } from '../../harness/adapters/podman.ts';
import { built } from '../../harness/paths.ts';
import { cudapool } from '../support/index.ts';
import { labFor, verify } from './support.ts';

t.test('the command, as it is typed', async (t) => {
  const lab = await labFor(t);
  const workload = await lab.start({ memoryMib: 1 });
  const shared = [
    ...lab.podman.globals.map((arg) => `--podman-arg=${arg}`),
    `--criu=${lab.criu.tree}`,
    '--keep',
    workload.name,
  ];
  // upstream's tool is found by PATH alone, as a user has it
  const env = { ...lab.podman.env, ...lab.env, PATH: `${built.softcudaBin}:${process.env.PATH}` };
  const dumped = await cudapool(['checkpoint', ...shared], { env });
  t.equal(dumped.exitCode, 0, dumped.stderr);
  t.match(await poolState(lab.poolPlace()), { running: true }, 'it started a pool');
  const restored = await cudapool(['restore', ...shared], { env });
  t.equal(restored.exitCode, 0, restored.stderr);
  t.match(restored.stderr, /Initializing GPU context pool\.\.\./);
  t.match(restored.stderr, /GPU context pool initialized successfully: ctx=0x[0-9a-f]+ device=0/);
  t.match(restored.stderr, /GPU context pool ENABLED - expect faster restore/);
  t.match(restored.stderr, /Warm context set for pid \d+: ctx=0x[0-9a-f]+ device=0/);
  t.match(restored.stdout, /^[0-9a-f]{64}$/, 'the id on stdout, as podman prints it');
  await verify(t, workload, 1, 'restored by the command');

  await cudapool(['checkpoint', ...shared], { env });
  const json = await cudapool(['restore', '--json', ...shared], { env });
  const result = JSON.parse(json.stdout) as Record<string, unknown>;
  t.match(result, {
    schema: 'cudapool.restore/1',
    action: 'restore',
    path: 'pool',
    container: { name: workload.name },
  });

  await cudapool(['checkpoint', ...shared], { env });
  const off = await cudapool(['restore', ...shared], { env: { ...env, CRIU_CUDA_CONTEXT_POOL: '0' } });
  t.equal(off.exitCode, 0, off.stderr);
  t.notMatch(off.stderr, /ENABLED/, 'the environment turns it off');

  // without --keep podman deletes CRIU's log: the messages are there all the same
  await cudapool(['checkpoint', ...shared], { env });
  const last = await cudapool(['restore', ...shared.filter((arg) => arg !== '--keep')], { env });
  t.match(last.stderr, /GPU context pool ENABLED/);
  await verify(t, workload, 1, 'restored without --keep');
});

t.test('an archive', async (t) => {
  const lab = await labFor(t);
  await lab.startPool();
  const workload = await lab.start({ memoryMib: 1, image: true });
  const archive = `${lab.dir}/archive.tar`;
  await lab.checkpoint(workload, { podmanOptions: [`--export=${archive}`] });
  await lab.remove(workload);
  const restored = await lab.restore(workload, { archive, podmanOptions: [] });
  t.equal(restored.path, 'pool', restored.why);
  t.equal((await inspectContainer(lab.podman, workload.name)).id, restored.container.id);
  await verify(t, workload, 1, 'from the archive');
});

t.test('an image', async (t) => {
  const lab = await labFor(t);
  const workload = await lab.start({ memoryMib: 8, image: true, shim: true });
  const shared = [...lab.podman.globals.map((arg) => `--podman-arg=${arg}`), `--criu=${lab.criu.tree}`];
  const env = { ...lab.podman.env, ...lab.env, PATH: `${built.softcudaBin}:${process.env.PATH}` };
  const name = 'localhost/checkpoint:one';
  const dumped = await cudapool(['checkpoint', ...shared, '--create-image', name, workload.name], { env });
  t.equal(dumped.exitCode, 0, dumped.stderr);
  await lab.remove(workload);
  const restored = await cudapool(['restore', ...shared, '--name', `${workload.name}-2`, name], { env });
  t.equal(restored.exitCode, 0, restored.stderr);
  t.match(restored.stderr, /8\.0 MiB of GPU memory of gpu_app .*: loaded from the image/);
  t.equal((await inspectContainer(lab.podman, `${workload.name}-2`)).id, restored.stdout);
  await verify(t, workload, 8, 'from the image');
});
