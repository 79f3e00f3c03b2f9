// SPDX-License-Identifier: MIT
// Images of parked GPU memory in a directory of CRIU's, and how records of them are told.
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../adapters/podman.ts';
import { bytes } from '../output.ts';
import type { ParkRecord } from './records.ts';

/** Where podman keeps a container's checkpoint. */
export const checkpointDir = ({ logs }: Pick<Container, 'logs'>): string => join(logs, 'checkpoint');

/** pool/image.h: IMAGE_PREFIX and IMAGE_SUFFIX around the token. */
const IMAGE = /^cudapool-([0-9a-f]{32})\.img$/;

export interface ImageFile {
  readonly file: string;
  /** 32 hexadecimal digits that name the park. */
  readonly token: string;
  readonly bytes: number;
  /** When it was complete. */
  readonly mtime_ms: number;
}

/** The complete images in a directory; none where there is no such directory. */
export function imagesIn(dir: string): ImageFile[] {
  let names: string[];
  try {
    names = readdirSync(dir);
  } catch {
    return [];
  }
  return names.sort().flatMap((name) => {
    const token = IMAGE.exec(name)?.[1];
    const found = token === undefined ? undefined : statSync(join(dir, name), { throwIfNoEntry: false });
    if (token === undefined || found === undefined) return [];
    return [{ file: join(dir, name), token, bytes: found.size, mtime_ms: found.mtimeMs }];
  });
}

/** The directory with images that a folder stands for: it, or the one that podman keeps in it; undefined: there are none. */
export const imageDirAt = (folder: string): string | undefined =>
  [folder, join(folder, 'checkpoint'), join(folder, 'userdata', 'checkpoint')].find((dir) => imagesIn(dir).length > 0);

const PATHS: Readonly<Record<string, string>> = {
  stock: 'not parked',
  parked: 'parked',
  'hot-move': 'given from the GPU, where it had stayed',
  'hot-copy': 'copied on the GPU',
  loaded: 'loaded from the image',
  returned: 'given back',
};

/** '6.55 GiB of GPU memory of python3 (4711): copied on the GPU; left to the driver: 12.0 MiB small'. */
export function recordLine({ pid, process, path, why, parked_bytes, left_bytes }: ParkRecord): string {
  const rest = Object.entries(left_bytes).filter(([, size]) => size > 0);
  return (
    `${bytes(parked_bytes)} of GPU memory of ${process} (${pid}): ${PATHS[path] ?? path}` +
    (why === '' ? '' : ` (${why})`) +
    (rest.length === 0
      ? ''
      : `; left to the driver: ${rest.map(([kind, size]) => `${bytes(size)} ${kind}`).join(', ')}`)
  );
}
