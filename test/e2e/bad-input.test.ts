// SPDX-License-Identifier: MIT
// `cudapool checkpoint` and `restore` with what cannot work: the message names the fix, and the exit code says which kind it is.
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { podman } from '../../harness/adapters/podman.ts';
import { cudapool, inRoot, isRoot, skipUnless } from '../support/index.ts';
import { labFor } from './support.ts';

t.test('containers that are not there, or not in the right state', async (t) => {
  const lab = await labFor(t);
  const workload = await lab.start({ image: true });
  const shared = [...lab.podman.globals.map((arg) => `--podman-arg=${arg}`), `--criu=${lab.criu.tree}`];
  const env = { ...lab.podman.env, ...lab.env };
  const misspelt = `${workload.name.slice(0, -1)}_`;

  const unknown = await cudapool(['restore', ...shared, misspelt], { env });
  t.equal(unknown.exitCode, 1);
  t.match(unknown.stderr, `no container named ${misspelt}`);
  t.match(unknown.stderr, `did you mean ${workload.name}?`);
  const json = await cudapool(['restore', '--json', ...shared, misspelt], { env });
  t.match(JSON.parse(json.stdout), {
    error: { code: 'ERR_CUDAPOOL_NO_CONTAINER', details: { near: [workload.name] } },
  });
  const renamed = await cudapool(['restore', ...shared, '--name=other', workload.name], { env });
  t.match(renamed, { exitCode: 2, stderr: /--name goes with --import or an image/ });
  const notOfCheckpoint = await cudapool(['restore', ...shared, 'localhost/cudapool-lab'], { env });
  t.match(notOfCheckpoint, { exitCode: 1, stderr: /no container named localhost\/cudapool-lab/ }, 'just an image');
  const runs = await cudapool(['restore', ...shared, workload.name], { env });
  t.match(runs, { exitCode: 1, stderr: /runs: only a stopped container[\s\S]*podman stop/ });

  await podman(lab.podman, ['stop', '--time=2', workload.name]);
  const stopped = await cudapool(['checkpoint', ...shared, workload.name], { env });
  t.match(stopped, { exitCode: 1, stderr: /does not run[\s\S]*podman start/ });
  const never = await cudapool(['restore', ...shared, workload.name], { env });
  t.match(never, { exitCode: 1, stderr: /cudapool checkpoint --keep/ }, 'there is no checkpoint');
});

t.test('usage', async (t) => {
  const cases: [string[], RegExp][] = [
    [['restore'], /name either a container or an archive/],
    [['restore', 'x', '--import', 'y'], /name either a container or an archive/],
    [['restore', 'x', '--streams', '65'], /from 0 to 64/],
    [['restore', 'x', '--chunk-mb', '-1'], /--chunk-mb/],
    [['checkpoint'], /missing required argument/],
    [['checkpoint', 'x', '--criu', 'a', '--criu-src', 'b'], /cannot be used with/],
  ];
  for (const [args, says] of cases) {
    const ran = await cudapool(args);
    t.match(ran, { exitCode: 2, stderr: says }, args.join(' '));
  }
});

t.test('a CRIU tree that is none, or is not built', async (t) => {
  const dir = t.testdir();
  const lab = await labFor(t);
  const workload = await lab.start();
  const globals = lab.podman.globals.map((arg) => `--podman-arg=${arg}`);
  for (const criu of [join(dir, 'none'), dir]) {
    const ran = await cudapool(['checkpoint', ...globals, `--criu=${criu}`, workload.name], {
      env: { ...lab.podman.env },
    });
    t.match(ran, { exitCode: 3, stderr: /ERR_CUDAPOOL_CRIU_NOT_BUILT[\s\S]*cudapool build/ }, criu);
  }
  t.not(await workload.pid(), 0, 'nothing was done');
});

t.test('not root', async (t) => {
  if (!skipUnless(t, isRoot, 'only root can become somebody else')) return;
  for (const action of ['checkpoint', 'restore']) {
    const nobody = ['--reuid=65534', '--regid=65534', '--clear-groups', inRoot('bin', 'cudapool'), action, 'x'];
    const ran = await exec('setpriv', nobody, { timeoutMs: 20_000, reject: false });
    t.match(ran, { exitCode: 3, stderr: /ERR_CUDAPOOL_NOT_ROOT[\s\S]*sudo/ }, action);
  }
});

t.test('no podman', async (t) => {
  const dir = t.testdir();
  mkdirSync(join(dir, 'bin'));
  for (const name of ['node', 'env', 'sh', 'dirname', 'readlink']) {
    const path = (await exec('which', [name], { timeoutMs: 5000 })).stdout.trim();
    writeFileSync(join(dir, 'bin', name), `#!/bin/sh\nexec ${path} "$@"\n`);
    chmodSync(join(dir, 'bin', name), 0o755);
  }
  const ran = await cudapool(['restore', 'x'], { env: { PATH: join(dir, 'bin') } });
  t.match(ran, { exitCode: 3, stderr: /podman is not installed[\s\S]*apt-get install podman/ });
});
