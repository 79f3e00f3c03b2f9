// SPDX-License-Identifier: MIT
// `cudapool checkpoint`: podman container checkpoint, with the pool.
import { type Command, Option } from 'commander';
import {
  type PodmanFlags,
  passedOn,
  placeOf,
  pluginOptionsOf,
  podmanFlags,
  report,
  type SharedFlags,
  sharedOptions,
} from './container/cli-options.ts';
import { requireRoot } from './errors.ts';

const PODMAN: PodmanFlags = [
  { flag: '--keep', short: '-k', text: 'keep the checkpoint and the logs after a restore' },
  { flag: '--leave-running', short: '-R', text: 'the container runs on' },
  { flag: '--tcp-established', text: 'with established TCP connections' },
  { flag: '--file-locks', text: 'with file locks' },
  { flag: '--ignore-rootfs', text: "without the root filesystem's changes in the archive" },
  { flag: '--ignore-volumes', text: 'without the volumes in the archive' },
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
    .option('--sync', 'CUDAPOOL_SYNC: sync the file system of the images before success is reported')
    .option('-e, --export <file>', 'write the checkpoint to this archive')
    .addOption(
      new Option('--create-image <name>', 'make an image of the checkpoint, for any registry').conflicts('export'),
    );
  sharedOptions(podmanFlags(command, PODMAN)).action(
    async (
      container: string,
      further: string[],
      flags: SharedFlags & { export?: string; createImage?: string } & Record<string, unknown>,
    ) => {
      if (flags.dryRun !== true) requireRoot('checkpoint a container');
      const { checkpointContainer } = await import('./container/actions.ts');
      const result = await checkpointContainer({
        place: placeOf(flags),
        ...pluginOptionsOf(flags),
        container,
        podmanOptions: [
          ...passedOn(flags, PODMAN),
          ...(flags.export === undefined ? [] : [`--export=${flags.export}`]),
          ...(flags.createImage === undefined ? [] : [`--create-image=${flags.createImage}`]),
          ...further,
        ],
      });
      if (flags.dryRun !== true) report(result, flags);
    },
  );
}
