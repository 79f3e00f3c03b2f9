// SPDX-License-Identifier: MIT
// The options that `checkpoint` and `restore` share, and how both report.
import { type Command, Option } from 'commander';
import { messageOf } from '../adapters/criu-log.ts';
import type { PodmanPlace } from '../adapters/podman.ts';
import { podmanArgs, wholeNumber } from '../arguments.ts';
import { colour, print, printJson, say, warn } from '../output.ts';
import type { ActionResult } from './actions.ts';
import type { PluginOptions } from './environment.ts';
import { recordLine } from './images.ts';

export interface SharedFlags {
  criu?: string;
  criuSrc?: string;
  pool?: boolean;
  parallel?: boolean;
  streams?: number;
  chunkMb?: number;
  hot?: string;
  sync?: boolean;
  podmanArg?: readonly string[];
  runtime?: string;
  printStats?: boolean;
  timeout: number;
  json?: boolean;
  dryRun?: boolean;
}

export function sharedOptions(command: Command): Command {
  return podmanArgs(
    command
      .option('--print-stats', "print podman's and CRIU's figures as podman does, on stdout")
      .option('--criu <dir>', 'built CRIU tree whose criu and CUDA plugin are used (default: what cudapool build made)')
      .addOption(new Option('--criu-src <dir>', 'the same').conflicts('criu'))
      .option('--pool', 'use the pool, and start it if there is none (default, unless CRIU_CUDA_CONTEXT_POOL=0)')
      .option('--no-pool', 'go the stock way')
      .option('--parallel', 'restore the processes of a tree at once (CRIU_CUDA_PARALLEL_RESTORE=1)')
      .option('--no-parallel', 'restore them one after another')
      .option(
        '--streams <n>',
        'CRIU_CUDA_STREAMS: threads that save or load an image; 0: the pool decides',
        wholeNumber(0, 64),
      )
      .option('--chunk-mb <n>', 'CRIU_CUDA_CHUNK_MB: MiB of one copy; 0: the pool decides', wholeNumber(0, 1024))
      .addOption(
        new Option('--hot <how>', 'CUDAPOOL_HOT: how GPU memory that stayed on the GPU comes back').choices([
          ...['auto', 'move', 'copy', 'off'],
        ]),
      )
      .option('--runtime <name>', "podman's OCI runtime; runc where crun was built without CRIU"),
  )
    .option('--timeout <seconds>', 'give up after this time', wholeNumber(1, 86_400), 900)
    .option('--json', 'print the result as JSON')
    .option('--dry-run', 'print the exact commands and change nothing');
}

export const placeOf = (flags: SharedFlags): PodmanPlace => ({
  globals: [...(flags.podmanArg ?? []), ...(flags.runtime === undefined ? [] : [`--runtime=${flags.runtime}`])],
});

export const pluginOptionsOf = (flags: SharedFlags): PluginOptions & { criu?: string; timeoutMs: number } => {
  const criu = flags.criu ?? flags.criuSrc;
  return {
    pool: flags.pool,
    parallel: flags.parallel,
    streams: flags.streams,
    chunkMb: flags.chunkMb,
    hot: flags.hot,
    sync: flags.sync,
    ...(criu !== undefined && { criu }),
    timeoutMs: flags.timeout * 1000,
  };
};

/** The guide's `grep -i "context pool"` finds its lines here, on stderr. */
export function report(result: ActionResult, flags: SharedFlags): void {
  const { criu, shim } = result;
  for (const line of result.plugin_messages) say(line);
  if (!criu.reached) {
    warn(
      "the environment did not reach CRIU: the container's runtime ran another one",
      'a runtime that names its own criu (runc --criu) or a libcriu of its own does that; use runc without that option',
    );
  } else if (result.pool_wanted && result.path !== 'pool') {
    warn(
      `the pool was not used: ${messageOf(result.why)}`,
      result.path === 'absent' ? 'cudapool build' : 'cudapool check',
    );
  }
  if (!result.pool_wanted && result.path === 'pool' && result.action === 'restore') {
    warn(
      'the pool was used all the same: the GPU memory of this checkpoint is parked, and only a pool can map it back',
      'to go without, take the checkpoint without: cudapool checkpoint --no-pool',
    );
  }
  if (process.env.LD_PRELOAD?.includes('libcudapool.so')) {
    warn(
      'LD_PRELOAD of this command reaches podman, the runtime and CRIU, where the shim does nothing; not the application',
    );
  }
  if (shim?.state === 'absent') {
    say(
      `${colour.dim('note:')} the container was created without the shim, so no context is warmed inside of it; ${shim.hint}`,
    );
  } else if (shim?.state === 'lost') {
    warn(`the shim of this container, ${shim.library}, is gone`, shim.hint);
  }
  for (const record of result.memory) say(recordLine(record));
  say(
    `${result.action === 'restore' ? 'restored' : 'checkpointed'} ${result.container.name} in ` +
      `${(result.wall_ms / 1000).toFixed(3)} s (${result.path}: ${messageOf(result.why)})`,
  );
  if (flags.json === true) printJson({ schema: `cudapool.${result.action}/1`, ...result });
  else if (flags.printStats === true) print(result.output.trimEnd());
  else print(result.container.id);
}

/** Options of podman that are passed on as they are: each flag, its short form, and what it does. */
export type PodmanFlags = readonly { readonly flag: string; readonly short?: string; readonly text: string }[];

export function podmanFlags(command: Command, flags: PodmanFlags): Command {
  for (const { flag, short, text } of flags) command.option(short === undefined ? flag : `${short}, ${flag}`, text);
  return command;
}

/** Those that were given, by commander's names. */
export function passedOn(given: Readonly<Record<string, unknown>>, flags: PodmanFlags): string[] {
  return flags
    .map(({ flag }) => flag)
    .filter((flag) => given[flag.slice(2).replace(/-(\w)/g, (_dash, letter: string) => letter.toUpperCase())] === true);
}
