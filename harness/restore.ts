// SPDX-License-Identifier: MIT
// `cudapool restore`: podman container restore, with the pool.
import type { Command } from 'commander';
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
import { requireRoot, usageError } from './errors.ts';

const PODMAN: PodmanFlags = [
  { flag: '--keep', short: '-k', text: 'keep the checkpoint, so that it can be restored again' },
  { flag: '--tcp-established', text: 'with established TCP connections' },
  { flag: '--file-locks', text: 'with file locks' },
  { flag: '--ignore-rootfs', text: "without the root filesystem's changes in the archive" },
  { flag: '--ignore-static-ip', text: 'do not set the static IP address' },
  { flag: '--ignore-static-mac', text: 'do not set the static MAC address' },
  { flag: '--ignore-volumes', text: 'without the volumes in the archive' },
];

export function registerRestore(program: Command): void {
  const command = program
    .command('restore')
    .summary('restore a container from its checkpoint')
    .description(
      "Restores a container with podman, its runtime and the patched CRIU. The plugin's messages, from CRIU's restore.log, " +
        "go to stderr. Options behind '--' go to podman as they are.",
    )
    .argument('[container]', 'its name or id; or an image of checkpoint --create-image; or --import')
    .argument('[podman-options...]', "behind '--': further options of podman container restore")
    .option('-i, --import <file>', 'restore from an archive of checkpoint --export')
    .option('-n, --name <name>', 'with an image or --import: name of the new container');
  sharedOptions(podmanFlags(command, PODMAN)).action(
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
      if (flags.dryRun !== true) requireRoot('restore a container');
      const { restoreContainer } = await import('./container/actions.ts');
      const result = await restoreContainer({
        place: placeOf(flags),
        ...pluginOptionsOf(flags),
        container: name,
        archive: flags.import,
        name: flags.name,
        podmanOptions: [...passedOn(flags, PODMAN), ...options],
      });
      if (flags.dryRun !== true) report(result, flags);
    },
  );
}
