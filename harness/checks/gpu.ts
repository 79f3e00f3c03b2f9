// SPDX-License-Identifier: MIT
// The GPU and its driver, as far as checkpoints need them.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { which } from '../adapters/exec.ts';
import { bytes, cudaVersion } from '../output.ts';
import { bad, note, ok, type Requirement, skip } from './requirement.ts';

const PROC = '/proc/driver/nvidia';
/** The first driver whose library has cuCheckpointProcess*. */
const OLDEST_DRIVER = 570;

const driverVersion = (): string | undefined => {
  try {
    return readFileSync(`${PROC}/version`, 'utf8').match(/\s(\d{3}\.[\d.]+)\s/)?.[1];
  } catch {
    return undefined;
  }
};

export const gpu: readonly Requirement[] = [
  {
    id: 'gpu',
    title: 'an NVIDIA GPU',
    group: 'GPU',
    gpuOnly: true,
    look: () => {
      const devices = existsSync(`${PROC}/gpus`) ? readdirSync(`${PROC}/gpus`) : [];
      if (devices.length > 0) return ok(devices.join(', '));
      return bad(
        `none in ${PROC}/gpus`,
        "load the driver (modprobe nvidia; see what nvidia-smi says); without a GPU, `npm start` shows the pool on the software driver, and --software leaves the GPU's lines out",
      );
    },
  },
  {
    id: 'driver',
    title: `NVIDIA driver r${OLDEST_DRIVER} or newer (checkpoint API)`,
    group: 'GPU',
    gpuOnly: true,
    look: () => {
      const version = driverVersion();
      if (version === undefined)
        return bad('no NVIDIA driver is loaded', 'install the driver and load it: modprobe nvidia');
      if (Number.parseInt(version, 10) >= OLDEST_DRIVER) return ok(version);
      return bad(version, `install driver ${OLDEST_DRIVER} or newer: older ones have no cuCheckpointProcessRestore`);
    },
  },
  {
    id: 'libcuda',
    title: 'libcuda.so.1 answers',
    group: 'GPU',
    look: async ({ software }) => {
      const { driverFacts } = await import('../driver/index.ts');
      const { built } = await import('../paths.ts');
      const facts = await driverFacts(software ? { env: { LD_LIBRARY_PATH: built.softcudaLib } } : {});
      if (facts.problem !== undefined) {
        return bad(
          facts.problem,
          software
            ? 'cudapool setup --for use'
            : 'see what nvidia-smi says; after a driver update: sudo systemctl restart nvidia-persistenced, or reboot',
        );
      }
      const version = facts.version ?? 0;
      const devices = (facts.devices ?? []).map((d) => `${d.name} (${bytes(Number(d.memory_bytes))})`);
      return ok(`CUDA ${cudaVersion(version)}, ${devices.join(', ')}`);
    },
  },
  {
    id: 'persistence',
    title: 'nvidia-persistenced',
    group: 'GPU',
    gpuOnly: true,
    look: () => {
      if (driverVersion() === undefined) return skip('no NVIDIA driver is loaded');
      if (existsSync('/run/nvidia-persistenced/socket') || existsSync('/var/run/nvidia-persistenced/socket'))
        return ok('running');
      return note(
        'not running: the first use of an idle GPU initialises it again',
        'sudo systemctl restart nvidia-persistenced, or nvidia-smi -pm 1',
      );
    },
  },
  {
    id: 'cuda-checkpoint',
    title: 'cuda-checkpoint in PATH',
    group: 'GPU',
    look: () => {
      const found = which('cuda-checkpoint');
      if (found !== undefined) return ok(found);
      return note(
        'not in PATH: without the pool, CRIU cannot checkpoint CUDA processes',
        "install NVIDIA's, or put pool/dropin first in PATH: then an unpatched CRIU uses the pool, too",
      );
    },
  },
];
