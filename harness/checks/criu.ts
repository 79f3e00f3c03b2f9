// SPDX-License-Identifier: MIT
// CRIU, the guide's prerequisites 1 to 3: the binary, the CUDA plugin, and cuda.h, which nobody needs any more.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { which } from '../adapters/exec.ts';
import { bad, type CheckContext, note, ok, type Requirement, sizeOf, skip } from './requirement.ts';

const binary = ({ criuTree }: CheckContext): string => join(criuTree, 'criu', 'criu');
const plugin = ({ criuTree }: CheckContext): string => join(criuTree, 'plugins', 'cuda', 'cuda_plugin.so');

async function fix({ criuTree }: CheckContext): Promise<string> {
  const { inRoot } = await import('../paths.ts');
  return criuTree.startsWith(inRoot('build')) ? 'cudapool build' : `cudapool build --criu-src ${criuTree}`;
}

export const criu: readonly Requirement[] = [
  {
    id: 'criu-built',
    title: 'CRIU is built',
    group: 'CRIU',
    look: async (context) => {
      const size = sizeOf(binary(context));
      if (size === undefined) return bad(`${binary(context)} is not there`, await fix(context));
      const { criuVersionOf } = await import('../adapters/criu.ts');
      return ok(`${binary(context)}: ${await criuVersionOf(binary(context))}, ${size}`);
    },
  },
  {
    id: 'criu-plugin',
    title: 'its CUDA plugin, patched',
    group: 'CRIU',
    look: async (context) => {
      const size = sizeOf(plugin(context));
      if (size === undefined) return bad(`${plugin(context)} is not there`, await fix(context));
      const patched = readFileSync(plugin(context)).includes('CRIU_CUDA_CONTEXT_POOL');
      if (patched) return ok(`${plugin(context)}: ${size}`);
      return bad(
        `${plugin(context)} (${size}) is upstream's`,
        `cudapool patch apply --criu-src ${context.criuTree} && cudapool build --criu-src ${context.criuTree}`,
      );
    },
  },
  {
    id: 'criu-check',
    title: 'this kernel suits CRIU',
    group: 'CRIU',
    look: async (context) => {
      if (sizeOf(binary(context)) === undefined) return skip('CRIU is not built');
      if (process.geteuid?.() !== 0) return skip('`criu check` needs root');
      const { criuCheck } = await import('../adapters/criu.ts');
      const ran = await criuCheck(binary(context));
      const said = `${ran.stdout}\n${ran.stderr}`.split('\n').filter((line) => line.trim() !== '');
      if (ran.exitCode === 0) return ok(said.find((line) => line.includes('Looks good')) ?? 'criu check passes');
      const why = said.find((line) => line.includes('Error')) ?? said.at(-1) ?? `exit code ${ran.exitCode}`;
      return bad(why.trim(), `see all of it: ${ran.command}`);
    },
  },
  {
    id: 'criu-in-path',
    title: 'the CRIU in PATH, which a plain podman uses',
    group: 'CRIU',
    look: async () => {
      const found = which('criu');
      if (found === undefined) return ok('none: `cudapool checkpoint` and `restore` bring theirs');
      const { criuVersionOf } = await import('../adapters/criu.ts');
      const version = await criuVersionOf(found);
      if (Number.parseInt(version, 10) >= 4) return ok(`${found}: ${version}`);
      return note(
        `${found}: ${version}, older than the CUDA plugin`,
        'use `cudapool checkpoint` and `restore`, which bring their own',
      );
    },
  },
  {
    id: 'cuda-h',
    title: 'cuda.h',
    group: 'CRIU',
    look: () => {
      const folders = existsSync('/usr/local')
        ? readdirSync('/usr/local').filter((name) => name.startsWith('cuda'))
        : [];
      const there = folders.map((name) => `/usr/local/${name}/include/cuda.h`).find(existsSync);
      return ok(`not needed: the build uses our own${there === undefined ? '' : ` (there is one: ${there})`}`);
    },
  },
];
