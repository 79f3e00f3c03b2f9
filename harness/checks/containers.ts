// SPDX-License-Identifier: MIT
// podman, its runtime, and how settings reach CRIU.
import semver from 'semver';
import { look, which } from '../adapters/exec.ts';
import { bad, note, ok, type Requirement, skip } from './requirement.ts';

/** The first crun with libcriu that reads CRIU's configuration files. */
const CRUN_READS_CONFIG = '1.26.0';

export const containers: readonly Requirement[] = [
  {
    id: 'podman',
    title: 'podman',
    group: 'containers',
    look: async () => {
      if (which('podman') === undefined) return bad('not in PATH', 'apt-get install podman');
      const { podman, usersPodman } = await import('../adapters/podman.ts');
      const { stdout } = await podman(usersPodman, ['version', '--format', '{{.Client.Version}}'], { readOnly: true });
      return ok(stdout.trim());
    },
  },
  {
    id: 'runtime',
    title: 'a runtime that can checkpoint',
    group: 'containers',
    look: async () => {
      const runc = which('runc');
      if (runc !== undefined) {
        const { stdout } = await look(runc, ['--version']);
        return ok(`${stdout.split('\n')[0]?.trim()} (--runtime runc)`);
      }
      const crun = which('crun');
      const fix = 'apt-get install runc, and create the containers with podman --runtime runc';
      if (crun === undefined) return bad('neither runc nor crun is in PATH', fix);
      const { stdout } = await look(crun, ['--version']);
      const version = semver.coerce(stdout.split('\n')[0]);
      if (!stdout.includes('+CRIU')) return bad(`crun ${version} is built without CRIU`, fix);
      if (version === null || semver.lt(version, CRUN_READS_CONFIG)) {
        return note(`crun ${version} with CRIU, which ignores CRIU's configuration files`, fix);
      }
      return ok(`crun ${version} with CRIU`);
    },
  },
  {
    id: 'conmon',
    title: 'conmon',
    group: 'containers',
    look: () => {
      const found = which(
        'conmon',
        `${process.env.PATH ?? ''}:/usr/libexec/podman:/usr/lib/podman:/usr/local/libexec/podman`,
      );
      return found === undefined ? bad('not found', 'apt-get install conmon') : ok(found);
    },
  },
  {
    id: 'environment',
    title: 'CRIU_CUDA_CONTEXT_POOL reaches CRIU',
    group: 'containers',
    look: async () => {
      const { built } = await import('../paths.ts');
      if (which(built.cudapoold) === undefined) return skip('cudapoold is not built');
      const { poolOptions } = await import('../adapters/cudapoold.ts');
      const option = (await poolOptions()).find((one) => one.environment === 'CRIU_CUDA_CONTEXT_POOL');
      if (option?.source === 'file') return ok(`set to ${option.value} in the configuration file`);
      const cure = "use `cudapool restore`, or write 'CRIU_CUDA_CONTEXT_POOL=1' into /etc/cudapool/cudapool.conf";
      if (option?.source === 'environment') {
        return note(
          `set to ${option.value} in this shell, which podman may not pass on (4.3.1 does not, on restore)`,
          cure,
        );
      }
      return note('not set: a plain podman restores without the pool', cure);
    },
  },
];
