// SPDX-License-Identifier: MIT
// What the machine itself must offer: kernel, privileges, space.
import { existsSync, readFileSync, statfsSync } from 'node:fs';
import { release } from 'node:os';
import semver from 'semver';
import { which } from '../adapters/exec.ts';
import { bytes } from '../output.ts';
import { bad, type Finding, note, ok, type Requirement } from './requirement.ts';

/** pidfd_getfd, clone3 and what CRIU 4 uses came by then. */
const OLDEST_KERNEL = '5.9.0';

const CAPABILITIES = {
  CAP_SYS_PTRACE: 19,
  CAP_SYS_ADMIN: 21,
  CAP_SYS_RESOURCE: 24,
} as const;

function hasCapability(name: keyof typeof CAPABILITIES): boolean {
  const hex = readFileSync('/proc/self/status', 'utf8').match(/^CapEff:\s*([0-9a-f]+)$/m)?.[1] ?? '0';
  return ((BigInt(`0x${hex}`) >> BigInt(CAPABILITIES[name])) & 1n) === 1n;
}

const readOr = (path: string, otherwise: string): string => {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return otherwise;
  }
};

function space(path: string, needed: number, what: string, fix: string): Finding {
  let free: number;
  try {
    const fs = statfsSync(path);
    free = fs.bavail * fs.bsize;
  } catch {
    return note(`${path} is not there`, fix);
  }
  const found = `${bytes(free)} free in ${path} (${what})`;
  return free < needed ? note(found, fix) : ok(found);
}

export const machine: readonly Requirement[] = [
  {
    id: 'node',
    title: 'Node.js 20.12 or newer',
    group: 'machine',
    look: () =>
      semver.gte(process.version, '20.12.0')
        ? ok(process.version)
        : bad(process.version, 'install a newer Node.js: https://nodejs.org/'),
  },
  {
    id: 'kernel',
    title: `Linux ${OLDEST_KERNEL.slice(0, 3)} or newer`,
    group: 'machine',
    look: () => {
      const version = semver.coerce(release());
      return version !== null && semver.gte(version, OLDEST_KERNEL)
        ? ok(release())
        : bad(release(), 'boot a newer kernel');
    },
  },
  {
    id: 'root',
    title: 'root',
    group: 'machine',
    look: () => (process.geteuid?.() === 0 ? ok('yes') : bad(`user ${process.geteuid?.()}`, 'run it with sudo')),
  },
  {
    id: 'capabilities',
    title: 'privileges for CRIU',
    group: 'machine',
    look: () => {
      const missing = (['CAP_SYS_PTRACE', 'CAP_SYS_ADMIN'] as const).filter((name) => !hasCapability(name));
      if (missing.length > 0) {
        return bad(`${missing.join(' and ')} missing`, 'run it as root outside of a container, or in a privileged one');
      }
      if (hasCapability('CAP_SYS_RESOURCE')) return ok('CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_RESOURCE');
      return note(
        'CAP_SYS_RESOURCE missing: limits cannot be raised, containers of another user cannot be dumped',
        'give containers --ulimit nofile=1024:1024 --ulimit nproc=4096:4096',
      );
    },
  },
  {
    id: 'cgroups',
    title: 'control groups',
    group: 'machine',
    look: () => {
      if (existsSync('/sys/fs/cgroup/cgroup.controllers')) return ok('version 2');
      const hybrid = existsSync('/sys/fs/cgroup/unified');
      return note(
        hybrid ? 'hybrid of versions 1 and 2' : 'version 1',
        'crun refuses a hybrid: use runc, or boot with systemd.unified_cgroup_hierarchy=1',
      );
    },
  },
  {
    id: 'network-lock',
    title: "iptables-restore, for CRIU's network lock",
    group: 'machine',
    look: () => {
      const found = which('iptables-restore');
      if (found !== undefined) return ok(found);
      return note(
        'not in PATH: connections of a container are not held while it is dumped',
        "apt-get install iptables; for a plain `podman container checkpoint`, or put 'network-lock skip' into /etc/criu/runc.conf",
      );
    },
  },
  {
    id: 'huge-pages',
    title: 'transparent huge pages',
    group: 'machine',
    look: () => {
      const path = '/sys/kernel/mm/transparent_hugepage/enabled';
      const mode = readOr(path, '').match(/\[(\w+)\]/)?.[1];
      if (mode === undefined) return note('not known to this kernel');
      if (mode === 'always') return ok(mode);
      return note(
        `${mode}; with 'always', host pages are restored faster (0.90 s to 0.70 s for 1.8 GB)`,
        `echo always > ${path}`,
      );
    },
  },
  {
    id: 'shared-memory',
    title: 'space in shared memory',
    group: 'machine',
    look: () => space('/dev/shm', 64 << 20, 'the software driver', 'mount -o remount,size=1G /dev/shm'),
  },
  {
    id: 'image-space',
    title: 'space for checkpoints',
    group: 'machine',
    look: () =>
      space(
        existsSync('/var/lib/containers') ? '/var/lib/containers' : '/var/lib',
        8 * 2 ** 30,
        "podman's checkpoints",
        'a checkpoint holds the host and GPU memory of its container: make room, or use podman --root',
      ),
  },
];
