// SPDX-License-Identifier: MIT
// `cudapool evict` and `cudapool prefetch`: where parked GPU memory lies is changed by hand.
import { statSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { type Command, Option } from 'commander';
import type { Found } from './adapters/cudapoold.ts';
import { checkpointDir, gib, imagesIn } from './container/images.ts';
import { CudapoolError, usageError } from './errors.ts';
import { printJson, say } from './output.ts';

interface Flags {
  tier: string;
  socket?: string;
  podmanArg: string[];
  json?: boolean;
  dryRun?: boolean;
}

const several = (arg: string, all: string[]): string[] => [...all, arg];

function shared(command: Command): Command {
  return command
    .option('--socket <path>', "the pool's socket (default: CUDAPOOL_SOCKET)")
    .option(
      '--podman-arg <arg>',
      'a global option of podman, as --podman-arg=--root=/srv/podman; may be repeated',
      several,
      [],
    )
    .option('--json', 'print the answer as JSON')
    .option('--dry-run', 'print the exact commands and change nothing');
}

/** Where a container's checkpoint lies. */
async function dirOf(container: string, flags: Flags): Promise<string> {
  const { inspectContainer } = await import('./adapters/podman.ts');
  return checkpointDir(await inspectContainer({ globals: flags.podmanArg }, container));
}

const TOKEN = /^[0-9a-f]{32}$/;

/** The tokens of a container's images. */
async function tokensOf(container: string, flags: Flags): Promise<string[]> {
  const dir = await dirOf(container, flags);
  const tokens = imagesIn(dir).map(({ file }) => basename(file).replace(/^cudapool-|\.img$/g, ''));
  if (tokens.length > 0) return tokens;
  throw new CudapoolError('ERR_CUDAPOOL_NO_IMAGE', `the checkpoint of ${container} has no parked GPU memory`, {
    hint: `it would be in ${dir}; \`cudapool status\` shows what the pool has`,
  });
}

type Sum = Pick<Found, 'count' | 'bytes' | 'hot_bytes'>;

function tell(done: readonly (Found | undefined)[], flags: Flags, line: (all: Sum) => string): void {
  const found = done.filter((each) => each !== undefined);
  if (found.length === 0) return; // a dry run
  const sum = (name: 'count' | 'bytes' | 'hot_bytes'): number => found.reduce((total, each) => total + each[name], 0);
  const all = { count: sum('count'), bytes: sum('bytes'), hot_bytes: sum('hot_bytes') };
  if (flags.json === true) printJson({ schema: 'cudapool.tiers/1', ...all });
  else say(line(all));
}

export function registerEvict(program: Command): void {
  shared(
    program
      .command('evict')
      .argument('[what]', "a container, a token of `cudapool status`, or 'all'", 'all')
      .description(
        'let go of GPU memory that is kept for the next restore; the image stays, and the restore reads that',
      )
      .addOption(new Option('--tier <tier>', 'where it may stay').choices(['staged', 'cold']).default('staged')),
  ).action(async (what: string, flags: Flags) => {
    const { evict } = await import('./adapters/cudapoold.ts');
    const tier = flags.tier === 'cold' ? 'cold' : 'staged';
    const tokens = what === 'all' || TOKEN.test(what) ? [what] : await tokensOf(what, flags);
    const done: (Found | undefined)[] = [];
    for (const token of tokens) done.push(await evict({ socket: flags.socket }, { token, tier }));
    tell(done, flags, ({ count, hot_bytes }) => `evicted ${count} park(s), ${gib(hot_bytes)} of GPU memory`);
  });
}

export function registerPrefetch(program: Command): void {
  shared(
    program
      .command('prefetch')
      .argument('<what>', "a container with a checkpoint, or CRIU's image directory")
      .description('load the parked GPU memory of a checkpoint ahead of its restore; returns when it is there')
      .addOption(
        new Option('--tier <tier>', 'to the GPU, or to host memory').choices(['hot', 'staged']).default('hot'),
      ),
  ).action(async (what: string, flags: Flags) => {
    const { prefetch } = await import('./adapters/cudapoold.ts');
    const tier = flags.tier === 'staged' ? 'staged' : 'hot';
    const isDir = statSync(resolve(what), { throwIfNoEntry: false })?.isDirectory() === true;
    if (!isDir && what.includes('/')) {
      throw usageError(`${what} is no folder`, "give a container with a checkpoint, or CRIU's image directory");
    }
    const dir = isDir ? resolve(what) : await dirOf(what, flags);
    const done = await prefetch({ socket: flags.socket }, { dir, tier });
    tell(
      [done],
      flags,
      ({ count, bytes, hot_bytes }) =>
        `${count} image(s), ${gib(bytes)}: ${tier}${hot_bytes > 0 ? `, ${gib(hot_bytes)} was on the GPU before` : ''}`,
    );
  });
}
