// SPDX-License-Identifier: MIT
// The shim in containers: a folder that holds each version of the library under its build id, mounted read-only.
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { join, relative } from 'node:path';
import type { Container } from '../adapters/podman.ts';
import { unfitError } from '../errors.ts';
import { built } from '../paths.ts';
import { stateDir } from './injection.ts';

const LIBRARY = 'libcudapool.so';

export const shimDir = (env: Readonly<Record<string, string | undefined>> = process.env): string =>
  join(stateDir(env), 'shim');

/** The GNU build id, hexadecimal; it is what tells two versions of a library apart. */
export function buildId(file: string): string {
  const elf = readFileSync(file);
  const bad = (why: string) => unfitError('ERR_CUDAPOOL_SHIM', `${file} ${why}`, 'cudapool setup builds it anew');
  if (elf.length < 64 || elf.readUInt32BE(0) !== 0x7f454c46 || elf[4] !== 2 || elf[5] !== 1) {
    throw bad('is not a 64-bit little-endian ELF file');
  }
  const offset = Number(elf.readBigUInt64LE(32));
  const entrySize = elf.readUInt16LE(54);
  const entries = elf.readUInt16LE(56);
  for (let i = 0; i < entries; i++) {
    const entry = offset + i * entrySize;
    if (entry + 56 > elf.length) break;
    if (elf.readUInt32LE(entry) !== 4) continue; // PT_NOTE
    let at = Number(elf.readBigUInt64LE(entry + 8));
    const end = Math.min(at + Number(elf.readBigUInt64LE(entry + 32)), elf.length);
    while (at + 12 <= end) {
      const nameSize = elf.readUInt32LE(at);
      const size = elf.readUInt32LE(at + 4);
      const name = at + 12;
      const value = name + ((nameSize + 3) & ~3);
      if (elf.readUInt32LE(at + 8) === 3 && elf.toString('latin1', name, name + 4) === 'GNU\0' && value + size <= end) {
        return elf.toString('hex', value, value + size);
      }
      at = value + ((size + 3) & ~3);
    }
  }
  throw bad('has no build id');
}

/**
 * Puts the library into the folder, if this version is not there yet; others stay, as checkpoints need
 * the file that they were made with. Returns its path.
 */
export function installShim(dir = shimDir(), library: string = built.shim): string {
  if (!existsSync(library)) throw unfitError('ERR_CUDAPOOL_SHIM', `${library} is not built`, 'cudapool setup');
  const versionDir = join(dir, buildId(library));
  const target = join(versionDir, LIBRARY);
  if (!existsSync(target)) {
    mkdirSync(versionDir, { recursive: true, mode: 0o755 });
    const tmp = `${target}.${process.pid}`;
    copyFileSync(library, tmp);
    renameSync(tmp, target);
  }
  return target;
}

/** Where `installShim` would put it. */
export const shimPath = (dir = shimDir(), library: string = built.shim): string => join(dir, buildId(library), LIBRARY);

/** The software driver in a container: its libraries, and the folder that holds the state of its devices. */
export interface SoftwareDriver {
  readonly devices: string;
  readonly env?: Readonly<Record<string, string>>;
}

export interface ContainerNeeds {
  /** The library's path in its folder (`installShim`). */
  readonly shim?: { readonly library: string; readonly dir: string; readonly env?: Readonly<Record<string, string>> };
  readonly software?: SoftwareDriver;
}

/** The options of `podman run` or `podman create` for them. Whole folders are mounted: a file that was replaced does not restore. */
export function podmanArguments({ shim, software }: ContainerNeeds): string[] {
  const args: string[] = [];
  const mount = (dir: string, how: string): void => {
    args.push('--volume', `${dir}:${dir}:${how}`);
  };
  const env = (values: Readonly<Record<string, string>>): void => {
    for (const [name, value] of Object.entries(values)) args.push('--env', `${name}=${value}`);
  };
  if (shim !== undefined) {
    mount(shim.dir, 'ro');
    env({ LD_PRELOAD: shim.library, ...shim.env });
  }
  if (software !== undefined) {
    mount(built.softcudaLib, 'ro');
    mount(software.devices, 'rw');
    env({ LD_LIBRARY_PATH: built.softcudaLib, SOFTCUDA_DIR: software.devices, ...software.env });
  }
  return args;
}

export type ShimState =
  | { readonly state: 'present'; readonly library: string }
  | { readonly state: 'absent'; readonly hint: string }
  | { readonly state: 'lost'; readonly library: string; readonly hint: string };

/** Whether a container was created with the shim, and what to do if not. */
export function shimOf(container: Container): ShimState {
  const preload = container.env.find((line) => line.startsWith('LD_PRELOAD='))?.slice('LD_PRELOAD='.length) ?? '';
  const library = preload.split(/[ :]/).find((path) => path.endsWith(`/${LIBRARY}`));
  if (library === undefined) {
    return {
      state: 'absent',
      hint: `create the container with: cudapool run -- podman run … (LD_PRELOAD set at a restore does not reach the application)`,
    };
  }
  const mount = container.mounts.find(({ destination }) => !relative(destination, library).startsWith('..'));
  if (mount !== undefined && !existsSync(join(mount.source, relative(mount.destination, library)))) {
    return {
      state: 'lost',
      library,
      hint: `${join(mount.source, relative(mount.destination, library))} is gone: CRIU needs the same file at the same place; put that version back`,
    };
  }
  return { state: 'present', library };
}
