// SPDX-License-Identifier: MIT
// The smallest root filesystem that runs a program: it, its interpreter, and the libraries that it and its plugins need.
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { cachedLibraries, librariesOf } from '../adapters/binutils.ts';

/** Where a container's program lies. */
export const PROGRAM_DIR = '/app';
/** Where the NVIDIA driver's libraries are copied to; not below /usr, which may be mounted from this machine. */
export const DRIVER_DIR = '/opt/nvidia';

/** The NVIDIA driver's user-space libraries of this machine that CUDA loads, as absolute paths; none: no driver. */
export async function driverLibraries(): Promise<string[]> {
  const wanted = /^lib(cuda|nvidia-ml|nvidia-ptxjitcompiler|nvidia-nvvm|nvidia-gpucomp|nvidia-tileiras)\S*\.so\.\d+$/;
  const listed = (await cachedLibraries()).filter(({ name }) => wanted.test(name)).map(({ path }) => path);
  const dirs = ['/usr/local/nvidia/lib64', '/usr/lib64/nvidia'].filter((dir) => existsSync(dir));
  const others = dirs.flatMap((dir) =>
    readdirSync(dir)
      .filter((name) => wanted.test(name))
      .map((name) => join(dir, name)),
  );
  const byName = new Map<string, string>();
  for (const path of [...listed, ...others]) {
    if (!byName.has(basename(path)) && existsSync(path)) byName.set(basename(path), path);
  }
  return [...byName.values()];
}

/** The character devices of the NVIDIA driver. */
export function driverDevices(): string[] {
  return readdirSync('/dev')
    .filter((name) => /^nvidia(\d+|ctl|-uvm|-uvm-tools)$/.test(name))
    .map((name) => join('/dev', name))
    .filter((path) => statSync(path).isCharacterDevice());
}

function copy(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(realpathSync(from), to);
}

export interface RootfsOptions {
  /** An empty or missing folder. */
  readonly dir: string;
  /** Lands in PROGRAM_DIR; absent: none is needed. */
  readonly program?: string;
  /** Libraries that will be mounted and loaded at run time: what they need is copied, they are not. */
  readonly loadsLater?: readonly string[];
  /** Copied to DRIVER_DIR under their own names. */
  readonly driver?: readonly string[];
}

export async function makeRootfs({ dir, program, loadsLater = [], driver = [] }: RootfsOptions): Promise<void> {
  for (const name of ['dev', 'etc', 'proc', 'run', 'sys', 'tmp']) mkdirSync(join(dir, name), { recursive: true });
  for (const library of driver) copy(library, join(dir, DRIVER_DIR, basename(library)));
  if (program === undefined) return; // whatever runs in it brings its libraries along
  copy(program, join(dir, PROGRAM_DIR, basename(program)));
  const needed = new Set<string>();
  for (const file of [program, ...loadsLater, ...driver]) for (const each of await librariesOf(file)) needed.add(each);
  for (const library of needed) copy(library, join(dir, library));
}

/** CAP_SYS_RESOURCE: without it a container's limits cannot be raised to podman's defaults. */
export function canRaiseLimits(): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return (BigInt(`0x${effective}`) & (1n << 24n)) !== 0n;
}
