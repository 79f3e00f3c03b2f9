// SPDX-License-Identifier: MIT
// `cudapool restore`: podman container restore, with the pool.
import type { Command } from 'commander';
import {
  passedOn,
  placeOf,
  pluginOptionsOf,
  report,
  type SharedFlags,
  sharedOptions,
} from './container/cli-options.ts';
import { requireRoot, usageError } from './errors.ts';

const PASSED = [
  '--keep',
  '--tcp-established',
  '--file-locks',
  '--ignore-rootfs',
  '--ignore-static-ip',
  '--ignore-static-mac',
  '--ignore-volumes',
];

export function registerRestore(program: Command): void {
  const command = program
    .command('restore')
    .summary('restore a container from its checkpoint')
    .description(
      "Restores a container with podman, its runtime and the patched CRIU. The plugin's messages, from CRIU's restore.log, " +
        "go to stderr. Options behind '--' go to podman as they are.",
    )
    .argument('[container]', 'its name or id; or --import')
    .argument('[podman-options...]', "behind '--': further options of podman container restore")
    .option('-k, --keep', 'keep the checkpoint, so that it can be restored again')
    .option('-i, --import <file>', 'restore from an archive of checkpoint --export')
    .option('-n, --name <name>', 'with --import: name of the new container')
    .option('--tcp-established', 'with established TCP connections')
    .option('--file-locks', 'with file locks')
    .option('--ignore-rootfs', "without the root filesystem's changes in the archive")
    .option('--ignore-static-ip', 'do not set the static IP address')
    .option('--ignore-static-mac', 'do not set the static MAC address')
    .option('--ignore-volumes', 'without the volumes in the archive');
  sharedOptions(command).action(
    async (
      container: string | undefined,
      further: string[],
      flags: SharedFlags & { import?: string; name?: string } & Record<string, unknown>,
    ) => {
      // `restore --import FILE -- --opt`: commander takes the first word behind '--' for the container
      const [name, options] = container?.startsWith('-') ? [undefined, [container, ...further]] : [container, further];
      if ((name === undefined) === (flags.import === undefined)) {
        throw usageError(
          'name either a container or an archive (--import FILE)',
          'podman ps --all lists the containers',
        );
      }
      if (flags.name !== undefined && flags.import === undefined) throw usageError('--name goes with --import');
      if (flags.dryRun !== true) requireRoot('restore a container');
      const { restoreContainer } = await import('./container/actions.ts');
      const result = await restoreContainer({
        place: placeOf(flags),
        ...pluginOptionsOf(flags),
        container: name,
        archive: flags.import,
        name: flags.name,
        podmanOptions: [...passedOn(flags, PASSED), ...options],
      });
      if (flags.dryRun !== true) report(result, flags);
    },
  );
}
