// SPDX-License-Identifier: MIT
// This project's own parts: built, of one version, configured, running.
import { existsSync } from 'node:fs';
import { CudapoolError } from '../errors.ts';
import { built, version } from '../paths.ts';
import { bad, type Finding, note, ok, type Requirement, sizeOf, skip } from './requirement.ts';

const FIX_BUILD = 'cudapool setup --for use';

function builtFile(path: string): Finding {
  const size = sizeOf(path);
  return size === undefined ? bad(`${path} is not there`, FIX_BUILD) : ok(`${path}: ${size}`);
}

export const cudapool: readonly Requirement[] = [
  {
    id: 'pool-built',
    title: 'the pool is built',
    group: 'cudapool',
    look: async () => {
      if (!existsSync(built.cudapoold)) return builtFile(built.cudapoold);
      const { daemonVersion } = await import('../adapters/cudapoold.ts');
      const said = await daemonVersion({ daemon: built.cudapoold });
      return said.includes(version) ? ok(said) : bad(`${said}; this is cudapool ${version}`, FIX_BUILD);
    },
  },
  {
    id: 'shim-built',
    title: 'the shim is built',
    group: 'cudapool',
    look: () => builtFile(built.shim),
  },
  {
    id: 'configuration',
    title: 'the configuration is valid',
    group: 'cudapool',
    look: async () => {
      if (!existsSync(built.cudapoold)) return skip('cudapoold is not built');
      const { poolOptions } = await import('../adapters/cudapoold.ts');
      try {
        const set = (await poolOptions()).filter(
          (option) => option.source !== undefined && option.source !== 'default',
        );
        return ok(set.map((o) => `${o.environment}=${o.value} (${o.source})`).join(', ') || 'defaults');
      } catch (thrown) {
        if (!(thrown instanceof CudapoolError)) throw thrown;
        return bad(thrown.message, thrown.hint ?? 'correct it');
      }
    },
  },
  {
    id: 'pool-running',
    title: 'the pool runs and is warm',
    group: 'cudapool',
    look: async () => {
      if (!existsSync(built.cudapoold)) return skip('cudapoold is not built');
      const { poolState } = await import('../adapters/cudapoold.ts');
      const state = await poolState();
      if (!state.running) {
        if (state.absent) return note("not running; CRIU's patched plugin starts it on demand", 'cudapool pool start');
        return bad(state.why, 'cudapool pool restart');
      }
      const { worker, build, pid } = state.status;
      const found = `pid ${pid}, ${build}, worker ${worker.state}`;
      if (!build.startsWith(version)) return bad(`${found}; this is cudapool ${version}`, 'cudapool pool restart');
      if (worker.state === 'starting')
        return note(`${found}: the driver is being initialised`, 'ask again in a second');
      if (worker.state === 'failed') {
        return bad(
          `${found}: ${worker.text}`,
          'see what nvidia-smi says; if the driver was updated: sudo systemctl restart nvidia-persistenced',
        );
      }
      return ok(found);
    },
  },
  {
    id: 'preload',
    title: 'LD_PRELOAD of this shell',
    group: 'cudapool',
    look: () => {
      const value = process.env.LD_PRELOAD ?? '';
      if (!value.includes('libcudapool')) return ok(value === '' ? 'not set' : value);
      return note(
        `${value}: on \`podman container restore\` it never reaches the application`,
        'unset LD_PRELOAD; an application gets the shim when it is started: cudapool run -- COMMAND',
      );
    },
  },
];
