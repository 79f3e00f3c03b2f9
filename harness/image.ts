// SPDX-License-Identifier: MIT
// `cudapool image inspect | verify | prune`: what an image of parked GPU memory holds, whether it is sound, and which may go.
import { existsSync, statSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import type { Command } from 'commander';
import type { ImageReport } from './adapters/cudapoold.ts';
import { duration } from './arguments.ts';
import { imageDirAt, imagesIn } from './container/images.ts';
import { asCudapoolError, CudapoolError, EXIT, errorToJson, requireRoot, usageError } from './errors.ts';
import { bytes, count, cudaVersion, print, printError, printJson, progress, say, table, warn } from './output.ts';

/** The images that a path stands for: a file, a directory of CRIU's, or what podman keeps for a container. */
function imagesAt(path: string): string[] {
  const at = resolve(path);
  if (!existsSync(at)) {
    throw usageError(
      `${at} is not there`,
      "give an image file, CRIU's image directory, or podman's folder of a container",
    );
  }
  if (!statSync(at).isDirectory()) return [at];
  const dir = imageDirAt(at);
  if (dir !== undefined) return imagesIn(dir).map(({ file }) => file);
  throw new CudapoolError('ERR_CUDAPOOL_NO_IMAGE', `${at} holds no image of parked GPU memory`, {
    hint: 'nothing was parked in that checkpoint; `cudapool status` shows the last records, and why',
  });
}

/** An image as people read it. */
function described(image: ImageReport): string[][] {
  const { pieces, smallest_piece_bytes: least, largest_piece_bytes: most } = image;
  const each = least === most ? `of ${bytes(most)}` : `of ${bytes(least)} to ${bytes(most)}`;
  return [
    ['  of', `${image.process} (${image.pid}), dumped at ${image.created}`],
    ['  GPU memory', `${bytes(image.bytes)}, ${count(pieces, 'piece')}${pieces === 0 ? '' : ` ${each}`}`],
    ['  on disk', `${bytes(image.file_bytes)}; ${image.zero_percent} % were zeros, which are not stored`],
    ...image.devices.map(({ uuid, ...device }) => [
      '  GPU',
      `${uuid}: ${bytes(device.bytes)}, and ${bytes(device.left_bytes)} left to the driver`,
    ]),
    ['  made by', `cudapool ${image.build}, CUDA ${cudaVersion(image.driver_version)}; format ${image.version}`],
    ['  token', `${image.token}, of dump ${image.dump}`],
  ];
}

async function report(path: string, verify: boolean, json: boolean): Promise<void> {
  const { imageReport } = await import('./adapters/cudapoold.ts');
  const reports: Record<string, unknown>[] = [];
  let bad = false;
  for (const file of imagesAt(path)) {
    const shown = verify ? await progress(`reading ${bytes(statSync(file).size)} of ${basename(file)}`) : undefined;
    try {
      const said = await imageReport(file, { verify, onLine: (line) => shown?.update(line) });
      shown?.done(`read in ${((said.verify_ms ?? 0) / 1000).toFixed(1)} s`);
      reports.push({ file, ...said });
      if (!json) print(`${file}\n${table([], [...described(said), ...(verify ? [['  checksums', 'right']] : [])])}`);
    } catch (thrown) {
      const error = asCudapoolError(thrown);
      shown?.fail('not sound');
      if (error.code !== 'ERR_CUDAPOOL_IMAGE') throw error;
      bad = true;
      reports.push({ file, error: errorToJson(error) });
      if (!json) printError(error, false);
    }
  }
  if (json) printJson({ schema: `cudapool.image.${verify ? 'verify' : 'inspect'}/1`, images: reports });
  if (bad) process.exitCode = EXIT.FAILED;
}

interface PruneFlags {
  olderThan: number;
  json?: boolean;
  dryRun?: boolean;
}

async function prune(flags: PruneFlags): Promise<void> {
  requireRoot('remove images');
  const { pruneOwnImages } = await import('./container/own-images.ts');
  const pruned = await pruneOwnImages(flags.olderThan);
  if (pruned.awaited.length > 0) {
    warn(`${count(pruned.awaited.length, 'image')} left: living processes wait for them`, pruned.awaited.join(' '));
  }
  if (flags.dryRun === true) return;
  if (flags.json === true) printJson({ schema: 'cudapool.image.prune/1', ...pruned });
  else say(`removed ${count(pruned.removed.length, 'image')}, ${bytes(pruned.bytes)}, from ${pruned.dir}`);
}

export function registerImage(program: Command): void {
  const image = program.command('image').description('images of parked GPU memory');
  const command = (name: 'inspect' | 'verify', text: string): void => {
    image
      .command(name)
      .argument('<path>', "an image file, CRIU's image directory, or podman's folder of a container")
      .description(text)
      .option('--json', 'print it as JSON')
      .action((path: string, flags: { json?: boolean }) => report(path, name === 'verify', flags.json === true));
  };
  command('inspect', 'what an image says of itself: header and tables are checked, its content is not read');
  command('verify', 'read all of an image and check every checksum; exit code 1 if one is wrong');
  image
    .command('prune')
    .summary("remove old images of the drop-in from the pool's own directory")
    .description(
      "Removes images from the pool's own directory (CUDAPOOL_IMAGE_DIR) that are older than AGE, but for those that a living " +
        'process waits for. Only the drop-in cuda-checkpoint keeps images there. A checkpoint whose image is gone ' +
        'cannot be restored: give an age beyond which you want none of them back.',
    )
    .requiredOption('--older-than <age>', 'a number and s, m, h or d, as 12h or 7d', duration)
    .option('--json', 'print what was removed as JSON')
    .option('--dry-run', 'say which files would go, remove none')
    .action(prune);
}
