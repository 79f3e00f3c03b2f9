// SPDX-License-Identifier: MIT
// `cudapool evict` and `cudapool prefetch`: where parked GPU memory lies is changed by hand.
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import type { Found } from './adapters/cudapoold.ts';
import { podmanArgs } from './arguments.ts';
import { checkpointDir, imageDirAt, imagesIn } from './container/images.ts';
import { CudapoolError, usageError } from './errors.ts';
import { bytes, count, printJson, say } from './output.ts';

interface Flags {
  tier: string;
  socket?: string;
  podmanArg?: readonly string[];
  json?: boolean;
  dryRun?: boolean;
}

function shared(command: Command): Command {
  return podmanArgs(command.option('--socket <path>', "the pool's socket (default: CUDAPOOL_SOCKET)"))
    .option('--json', 'print the answer as JSON')
    .option('--dry-run', 'print the exact commands and change nothing');
}

/** Where the images of a container, or in a folder, lie. */
async function dirOf(what: string, flags: Flags): Promise<string> {
  const isFolder = statSync(resolve(what), { throwIfNoEntry: false })?.isDirectory() === true;
  if (!isFolder && what.includes('/')) {
    throw usageError(`${what} is no folder`, "give a container with a checkpoint, or CRIU's image directory");
  }
  const { inspectContainer } = await import('./adapters/podman.ts');
  const folder = isFolder
    ? resolve(what)
    : checkpointDir(await inspectContainer({ globals: flags.podmanArg ?? [] }, what));
  const dir = imageDirAt(folder);
  if (dir !== undefined) return dir;
  throw new CudapoolError(
    'ERR_CUDAPOOL_NO_IMAGE',
    isFolder ? `${folder} holds no parked GPU memory` : `${what} has no checkpoint with parked GPU memory`,
    { hint: `${isFolder ? '' : `it would be in ${folder}; `}\`cudapool status\` shows what the pool has` },
  );
}

const TOKEN = /^[0-9a-f]{32}$/;
/** As many digits of one as `status` shows, or more. */
const PART_OF_TOKEN = /^[0-9a-f]{8,31}$/;

/** The pool's parks whose tokens begin so. */
async function parksNamed(part: string, flags: Flags): Promise<string[]> {
  const { poolReport } = await import('./container/pool-process.ts');
  const { parksOf } = await import('./container/records.ts');
  const parks = parksOf((await poolReport({ socket: flags.socket }))?.parks);
  return parks.map(({ token }) => token).filter((token) => token.startsWith(part));
}

/** The tokens that a user's word stands for. */
async function tokensOf(what: string, flags: Flags): Promise<string[]> {
  if (what === 'all' || TOKEN.test(what)) return [what];
  if (PART_OF_TOKEN.test(what)) {
    const found = await parksNamed(what, flags);
    if (found.length === 1) return found;
    if (found.length > 1) throw usageError(`${what} begins several tokens: ${found.join(', ')}`, 'give all of one');
  }
  return imagesIn(await dirOf(what, flags)).map(({ token }) => token);
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
      .argument('[what]', "a container, a token of `cudapool status`, CRIU's image directory, or 'all'", 'all')
      .description(
        'let go of GPU memory that is kept for the next restore; the image stays, and the restore reads that',
      )
      .addOption(new Option('--tier <tier>', 'where it may stay').choices(['staged', 'cold']).default('staged')),
  ).action(async (what: string, flags: Flags) => {
    const { evict } = await import('./adapters/cudapoold.ts');
    const tier = flags.tier === 'cold' ? 'cold' : 'staged';
    const done: (Found | undefined)[] = [];
    for (const token of await tokensOf(what, flags)) done.push(await evict({ socket: flags.socket }, { token, tier }));
    tell(done, flags, (all) =>
      all.count === 0
        ? 'nothing to evict'
        : `evicted ${bytes(all.hot_bytes)} of GPU memory, ${count(all.count, 'park')}`,
    );
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
    const dir = await dirOf(what, flags);
    const size = imagesIn(dir).reduce((sum, image) => sum + image.bytes, 0);
    if (flags.dryRun !== true && flags.json !== true) say(`loading up to ${bytes(size)} …`);
    const done = await prefetch({ socket: flags.socket }, { dir, tier });
    tell(
      [done],
      flags,
      (all) =>
        `${tier}: ${bytes(all.bytes)}, ${count(all.count, 'image')}` +
        (all.hot_bytes > 0 ? `; ${bytes(all.hot_bytes)} of it was on the GPU before` : ''),
    );
  });
}
