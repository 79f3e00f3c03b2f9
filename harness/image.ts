// SPDX-License-Identifier: MIT
// `cudapool image inspect | verify`: what an image of parked GPU memory holds, and whether it is sound.
import { existsSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { imagesIn } from './container/images.ts';
import { asCudapoolError, CudapoolError, errorToJson, usageError } from './errors.ts';
import { print, printError, printJson, table } from './output.ts';
import { flatten } from './status.ts';

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
  const found = [at, join(at, 'checkpoint'), join(at, 'userdata', 'checkpoint')]
    .map(imagesIn)
    .find(({ length }) => length > 0);
  if (found === undefined) {
    throw new CudapoolError('ERR_CUDAPOOL_NO_IMAGE', `${at} holds no image of parked GPU memory`, {
      hint: 'nothing was parked in that checkpoint; `cudapool status` shows the last records, and why',
    });
  }
  return found.map(({ file }) => file);
}

async function report(path: string, verify: boolean, json: boolean): Promise<void> {
  const { imageReport } = await import('./adapters/cudapoold.ts');
  const reports: Record<string, unknown>[] = [];
  let bad = false;
  for (const file of imagesAt(path)) {
    try {
      const said = await imageReport(file, { verify });
      reports.push({ file, ...said });
      if (!json)
        print(`${table([], [['file', file], ...flatten(said), ...(verify ? [['checksums', 'right']] : [])])}\n`);
    } catch (thrown) {
      const error = asCudapoolError(thrown);
      if (error.code !== 'ERR_CUDAPOOL_IMAGE') throw error;
      bad = true;
      reports.push({ file, error: errorToJson(error) });
      if (!json) printError(error, false);
    }
  }
  if (json) printJson({ schema: `cudapool.image.${verify ? 'verify' : 'inspect'}/1`, images: reports });
  if (bad) process.exitCode = 1;
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
}
