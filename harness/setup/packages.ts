// SPDX-License-Identifier: MIT
// The system packages that each purpose needs.
import { installPackages, missingPackages } from '../adapters/apt.ts';
import { quote } from '../adapters/exec.ts';
import { requireRoot, unfitError } from '../errors.ts';
import { progress, say } from '../output.ts';

export type Purpose = 'use' | 'demo' | 'test';

const native = ['gcc', 'libc6-dev', 'make', 'python3'];
const containers = ['podman', 'runc', 'conmon', 'iptables'];
const criu = [
  'pkg-config',
  'libprotobuf-dev',
  'libprotobuf-c-dev',
  'protobuf-c-compiler',
  'protobuf-compiler',
  'libcap-dev',
  'libnl-3-dev',
  'libnet1-dev',
  'uuid-dev',
  'xz-utils',
  'debian-archive-keyring',
];

export const packagesFor: Readonly<Record<Purpose, readonly string[]>> = {
  /** The shim, the pool, the drop-in tool. */
  use: native,
  /** Containers with a patched CRIU, too. */
  demo: [...native, ...containers, ...criu],
  test: [...native, ...containers, ...criu, 'binutils', 'procps'],
};

/** Installs what is missing; does not touch apt when nothing is. Returns what was missing. */
export async function ensurePackages(purpose: Purpose): Promise<string[]> {
  const missing = await missingPackages(packagesFor[purpose]);
  if (missing.length === 0) return [];
  if (process.geteuid?.() !== 0) {
    throw unfitError(
      'ERR_CUDAPOOL_PACKAGES_MISSING',
      `these packages are not installed: ${missing.join(' ')}`,
      `sudo ${quote(['apt-get', 'install', ...missing])}`,
    );
  }
  requireRoot('install packages');
  say(`cudapool: installing with apt-get: ${missing.join(' ')}`);
  const shown = await progress('apt-get install');
  try {
    await installPackages(missing, (line) => {
      if (/^(Get:|Unpacking|Setting up)/.test(line)) shown.update(line.slice(0, 100));
    });
  } catch (thrown) {
    shown.fail('apt-get failed');
    throw thrown;
  }
  shown.done(`installed ${missing.length} packages`);
  return missing;
}
