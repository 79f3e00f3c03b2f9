// SPDX-License-Identifier: MIT
// Images of parked GPU memory in a directory of CRIU's, and how records of them are told.
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../adapters/podman.ts';
import type { ParkRecord } from './records.ts';

/** Where podman keeps a container's checkpoint. */
export const checkpointDir = ({ logs }: Pick<Container, 'logs'>): string => join(logs, 'checkpoint');

/** pool/image.h: IMAGE_PREFIX and IMAGE_SUFFIX around the token. */
const IMAGE = /^cudapool-[0-9a-f]{32}\.img$/;

export interface ImageFile {
  readonly file: string;
  readonly bytes: number;
}

/** The complete images in a directory; none where there is no such directory. */
export function imagesIn(dir: string): ImageFile[] {
  let names: string[];
  try {
    names = readdirSync(dir);
  } catch {
    return [];
  }
  return names
    .filter((name) => IMAGE.test(name))
    .sort()
    .map((name) => join(dir, name))
    .map((file) => ({ file, bytes: statSync(file).size }));
}

const PATHS: Readonly<Record<string, string>> = {
  stock: 'not parked',
  parked: 'parked',
  'hot-move': 'given from the GPU, where it had stayed',
  'hot-copy': 'copied on the GPU',
  loaded: 'loaded from the image',
  returned: 'given back',
};

export const gib = (bytes: number): string =>
  bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(2)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;

/** '6.55 GiB of GPU memory of python3 (4711): copied on the GPU; left to the driver: 12.0 MiB small'. */
export function recordLine({ pid, process, path, why, parked_bytes, left_bytes }: ParkRecord): string {
  const rest = Object.entries(left_bytes).filter(([, size]) => size > 0);
  return (
    `${gib(parked_bytes)} of GPU memory of ${process} (${pid}): ${PATHS[path] ?? path}` +
    (why === '' ? '' : ` (${why})`) +
    (rest.length === 0 ? '' : `; left to the driver: ${rest.map(([kind, size]) => `${gib(size)} ${kind}`).join(', ')}`)
  );
}
