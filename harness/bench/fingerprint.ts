// SPDX-License-Identifier: MIT
// On which host, with which versions, a record was made.
import { existsSync, readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { criuVersionOf } from '../adapters/criu.ts';
import { look, which } from '../adapters/exec.ts';
import { commitOf } from '../adapters/git.ts';
import { inRoot, root, version } from '../paths.ts';
import type { Bed } from './bed.ts';
import type { Host } from './record.ts';

/** The first line that `program --version` prints; null where it is not installed. */
async function versionLine(program: string): Promise<string | null> {
  if (which(program) === undefined) return null;
  const { stdout } = await look(program, ['--version'], { reject: false });
  return stdout.split('\n')[0]?.trim() || null;
}

/** NVIDIA's own version of the kernel driver, which its library does not tell. */
function kernelDriver(): string | null {
  const file = '/proc/driver/nvidia/version';
  if (!existsSync(file)) return null;
  return readFileSync(file, 'utf8').match(/\b\d{3}\.\d+(?:\.\d+)?\b/)?.[0] ?? null;
}

/** A bundle carries no repository: it says itself from which commit it was made. */
async function commit(): Promise<string | null> {
  const bundled = inRoot('bundle.json');
  if (!existsSync(bundled)) return commitOf(root);
  const { commit: made } = JSON.parse(readFileSync(bundled, 'utf8')) as { commit: unknown };
  return typeof made === 'string' ? made : null;
}

export async function fingerprint(bed: Bed): Promise<Host> {
  const simulated = bed.driver === 'softcuda';
  const cuda = bed.facts.version;
  const cudaText = cuda === undefined ? null : `CUDA ${Math.floor(cuda / 1000)}.${Math.floor((cuda % 1000) / 10)}`;
  const driver = simulated
    ? `softcuda, ${cudaText}`
    : [kernelDriver(), cudaText].filter((part) => part !== null).join(', ');
  return {
    kernel: release(),
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cores: cpus().length,
    memory_mib: Math.round(totalmem() / 2 ** 20),
    gpus: (bed.facts.devices ?? []).map(({ name }) => name),
    driver: driver === '' ? null : driver,
    criu: await criuVersionOf(bed.criuBinary),
    podman: (await versionLine('podman'))?.replace(/^podman version /, '') ?? null,
    runtime: await versionLine('runc'),
    node: process.version,
    project: version,
    commit: await commit(),
    simulated,
    softcuda_costs: bed.costsSha256,
  };
}
