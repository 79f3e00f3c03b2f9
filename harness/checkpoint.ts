// SPDX-License-Identifier: MIT
// `cudapool checkpoint`: podman container checkpoint, with the pool.
import type { Command } from 'commander';
import {
  passedOn,
  placeOf,
  pluginOptionsOf,
  report,
  type SharedFlags,
  sharedOptions,
} from './container/cli-options.ts';
import { requireRoot } from './errors.ts';

const PASSED = [
  '--keep',
  '--leave-running',
  '--tcp-established',
  '--file-locks',
  '--ignore-rootfs',
  '--ignore-volumes',
];

export function registerCheckpoint(program: Command): void {
  const command = program
    .command('checkpoint')
    .summary('checkpoint a container')
    .description(
      "Checkpoints a container with podman, its runtime and the patched CRIU. The plugin's messages, from CRIU's dump.log, " +
        "go to stderr. Options behind '--' go to podman as they are.",
    )
    .argument('<container>', 'its name or id')
    .argument('[podman-options...]', "behind '--': further options of podman container checkpoint")
    .option('-k, --keep', 'keep the checkpoint and the logs after a restore')
    .option('-e, --export <file>', 'write the checkpoint to this archive')
    .option('-R, --leave-running', 'the container runs on')
    .option('--tcp-established', 'with established TCP connections')
    .option('--file-locks', 'with file locks')
    .option('--ignore-rootfs', "without the root filesystem's changes in the archive")
    .option('--ignore-volumes', 'without the volumes in the archive');
  sharedOptions(command).action(
    async (
      container: string,
      further: string[],
      flags: SharedFlags & { export?: string } & Record<string, unknown>,
    ) => {
      if (flags.dryRun !== true) requireRoot('checkpoint a container');
      const { checkpointContainer } = await import('./container/actions.ts');
      const result = await checkpointContainer({
        place: placeOf(flags),
        ...pluginOptionsOf(flags),
        container,
        podmanOptions: [
          ...passedOn(flags, PASSED),
          ...(flags.export === undefined ? [] : [`--export=${flags.export}`]),
          ...further,
        ],
      });
      if (flags.dryRun !== true) report(result, flags);
    },
  );
}
