// SPDX-License-Identifier: MIT
// Apply, build, verify, roll back, as typed on released sources; what is left is what was there, to the byte and the mode.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { unpack } from '../../harness/adapters/tar.ts';
import { CRIU_VERSIONS } from '../../harness/paths.ts';
import { inRoot, root, skipUnless, tempDir } from '../support/index.ts';

/** All of CRIU is built, for each version. */
const CHAIN_MS = 400_000;

const shell = async (command: string, timeoutMs = 60_000) =>
  exec('bash', ['-c', command], {
    cwd: root,
    timeoutMs,
    reject: false,
    env: { NODE_OPTIONS: undefined, MAKEFLAGS: undefined, MAKELEVEL: undefined },
  });

/** Every file's kind, mode, owner, size and link target. */
const listing = async (dir: string): Promise<string> =>
  (
    await shell(
      `cd ${dir} && find . \\( -type d -printf '%y %m %u %g %p\\n' -o -printf '%y %m %u %g %s %p %l\\n' \\) | sort`,
    )
  ).stdout;

t.setTimeout(CHAIN_MS * CRIU_VERSIONS.length);

for (const version of CRIU_VERSIONS) {
  t.test(`CRIU ${version}`, { timeout: CHAIN_MS }, async (t) => {
    const tarball = inRoot('build', 'sources', `criu_${version}.orig.tar.xz`);
    if (!skipUnless(t, existsSync(tarball), `no ${tarball}: bin/cudapool setup --for test fetches it`)) return;
    const dir = tempDir(t);
    const [D, pristine] = [join(dir, 'criu'), join(dir, 'pristine')];
    await unpack(tarball, D);
    await exec('cp', ['-a', D, pristine], { timeoutMs: 60_000 });

    const ran = await shell(
      `bin/cudapool patch apply --criu-src ${D} && bin/cudapool build --criu-src ${D} && ` +
        `bin/cudapool patch verify --criu-src ${D} && bin/cudapool patch rollback --criu-src ${D}`,
      CHAIN_MS,
    );
    t.equal(ran.exitCode, 0, ran.stderr.slice(-2000));
    t.ok(ran.stdout.includes(`\n${D}/criu/criu\n${D}/plugins/cuda/cuda_plugin.so\n`), 'CRIU and its plugin were built');
    t.match(ran.stdout, /^ok .*init_gpu_context_pool/m, 'the plugin was looked at');
    t.match(ran.stdout, /^removed \d{3,} files of the build$/m, 'the build was taken away');

    const left = await shell(`diff -r --no-dereference ${pristine} ${D}`);
    t.strictSame([left.exitCode, left.stdout, left.stderr], [0, '', ''], 'the tree is identical');
    t.equal(await listing(D), await listing(pristine), 'and so are kinds, modes, owners and links');
  });
}
