// SPDX-License-Identifier: MIT
// What a lab's containers run: gpu_app, a workload in Python, or another program; and what each needs of this machine.
import { cpSync, existsSync, lstatSync, mkdirSync, readlinkSync, symlinkSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { pythonPlaces } from '../adapters/python.ts';
import { inRoot } from '../paths.ts';
import { DRIVER_DIR, driverLibraries, makeRootfs, PROGRAM_DIR } from './rootfs.ts';

/** A program that speaks workloads/protocol.h. */
export type Program =
  /** workloads/gpu_app, with what it is to do with its memory. */
  | { readonly kind: 'gpu_app' }
  /** A file of workloads/, run by this machine's python3 with this machine's packages. */
  | { readonly kind: 'python'; readonly script: string; readonly args?: readonly string[] }
  /** Another executable that needs nothing but its libraries and the driver. */
  | { readonly kind: 'binary'; readonly file: string };

/** How podman is to run a program. */
export interface Prepared {
  readonly rootfs: string;
  /** The program and what comes before --dir. */
  readonly command: readonly string[];
  readonly options: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

export interface PrepareOptions {
  /** A missing folder; for programs in Python one that they share. */
  readonly dir: string;
  readonly driver: 'gpu' | 'software';
  /** Libraries that will be mounted and loaded at run time. */
  readonly loadsLater: readonly string[];
}

export const sameProgram = (a: Program, b: Program): boolean => JSON.stringify(a) === JSON.stringify(b);

export async function prepareProgram(program: Program, options: PrepareOptions): Promise<Prepared> {
  if (program.kind === 'python') return preparePython(program, options);
  const file = program.kind === 'gpu_app' ? inRoot('workloads', 'gpu_app') : program.file;
  await makeRootfs({
    dir: options.dir,
    program: file,
    loadsLater: options.loadsLater,
    driver: options.driver === 'gpu' ? await driverLibraries() : [],
  });
  return { rootfs: options.dir, command: [join(PROGRAM_DIR, basename(file))], options: [], env: {} };
}

/** What of /etc programs look at: users, the loader's cache, which compiler `cc` is. */
const ETC = [
  'passwd',
  'group',
  'nsswitch.conf',
  'ld.so.cache',
  'ld.so.conf',
  'ld.so.conf.d',
  'alternatives',
  'localtime',
];
const CUDA_TOOLKIT = process.env.CUDA_PATH || '/usr/local/cuda';
/** Folders at the root that are links into /usr on a merged system. */
const MERGED = ['bin', 'sbin', 'lib', 'lib32', 'lib64'];

/**
 * This machine's /usr, and the folders of its Python packages, are mounted: whole folders, read-only, and without what is
 * mounted below them, as CRIU cannot dump some of that. The driver's libraries are copied: they may be such mounts.
 */
async function preparePython(
  { script, args = [] }: Extract<Program, { kind: 'python' }>,
  { dir, driver }: PrepareOptions,
): Promise<Prepared> {
  const python = await pythonPlaces();
  if (!existsSync(dir)) await makeSystemRoot(dir, driver);
  const folders = ['/usr', inRoot('workloads'), ...python.folders].filter(
    (folder, i, all) => !all.some((other, j) => (j < i && other === folder) || folder.startsWith(`${other}/`)),
  );
  return {
    rootfs: dir,
    command: [python.executable, inRoot('workloads', script), ...args],
    options: [
      ...folders.map((folder) => `--volume=${folder}:${folder}:ro,bind`),
      '--security-opt=seccomp=unconfined',
      '--workdir=/tmp',
    ],
    env: {
      HOME: '/tmp',
      PATH: [dirname(python.executable), '/usr/local/bin', '/usr/bin', '/bin'].join(':'),
      PYTHONPATH: python.path.join(':'),
      PYTHONDONTWRITEBYTECODE: '1',
      PYTHONUNBUFFERED: '1',
      // PyTorch would start processes that compile; all that it and the others compile stays in the container's /tmp.
      TORCHINDUCTOR_COMPILE_THREADS: '1',
      XDG_CACHE_HOME: '/tmp/cache',
      TRITON_CACHE_DIR: '/tmp/cache/triton',
      TORCHINDUCTOR_CACHE_DIR: '/tmp/cache/inductor',
      ...(driver === 'gpu' && { TRITON_LIBCUDA_PATH: DRIVER_DIR }),
      ...(existsSync(CUDA_TOOLKIT) && { CUDA_PATH: CUDA_TOOLKIT }), // CuPy compiles with its headers
    },
  };
}

async function makeSystemRoot(dir: string, driver: 'gpu' | 'software'): Promise<void> {
  await makeRootfs({ dir, driver: driver === 'gpu' ? await driverLibraries() : [] });
  for (const name of ['usr', 'root', 'home', 'opt', 'var']) mkdirSync(join(dir, name), { recursive: true });
  for (const name of MERGED) linkLike(join('/', name), join(dir, name));
  for (const name of ETC) {
    const from = join('/etc', name);
    if (existsSync(from)) cpSync(from, join(dir, 'etc', name), { recursive: true, verbatimSymlinks: true });
  }
}

/** The same link as on this machine, if it is one. */
function linkLike(from: string, to: string): void {
  if (lstatSync(from, { throwIfNoEntry: false })?.isSymbolicLink()) symlinkSync(readlinkSync(from), to);
}
