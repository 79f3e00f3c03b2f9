// SPDX-License-Identifier: MIT
// What the pool says of parked memory: the records that it leaves beside the images (pool/records.h), and its report's lists.
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';

const bytes = v.pipe(v.number(), v.integer(), v.minValue(0));

/** What the pool says of one process in one checkpoint or restore (pool/records.h); there may be more. */
const ParkRecord = v.looseObject({
  stage: v.picklist(['dump', 'restore']),
  at: v.pipe(v.string(), v.isoTimestamp()),
  path: v.string(),
  error: v.number(),
  why: v.string(),
  container: v.string(),
  process: v.string(),
  pid: v.number(),
  tier: v.nullable(v.string()),
  parked_bytes: bytes,
  image_bytes: bytes,
  left_bytes: v.record(v.string(), bytes),
  phases_us: v.record(v.string(), bytes),
});
export type ParkRecord = v.InferOutput<typeof ParkRecord>;
const Park = v.looseObject({
  container: v.string(),
  process: v.string(),
  pid: v.number(),
  token: v.string(),
  state: v.string(),
  tier: v.string(),
  bytes,
  image_bytes: bytes,
  age_s: v.number(),
  path: v.string(),
});
export type Park = v.InferOutput<typeof Park>;

/** Those of a list that are as they should be; what another version of the pool says otherwise is left out. */
const soundOnes = <T extends v.GenericSchema>(schema: T, raw: unknown): v.InferOutput<T>[] =>
  (Array.isArray(raw) ? raw : []).flatMap((each) => {
    const found = v.safeParse(schema, each);
    return found.success ? [found.output] : [];
  });

/** `parks` and `records` of the pool's report. */
export const parksOf = (raw: unknown): Park[] => soundOnes(Park, raw);
export const recordsOf = (raw: unknown): ParkRecord[] => soundOnes(ParkRecord, raw);

const RECORD = { checkpoint: 'cudapool-dump.json', restore: 'cudapool-restore.json' } as const;
const MAX_RECORD = 4 << 20;

/** The records of the last checkpoint or restore in a directory, one for each process; none if the pool had no part in it. */
export function recordsIn(dir: string, action: keyof typeof RECORD): ParkRecord[] {
  let text: string;
  try {
    const file = join(dir, RECORD[action]);
    if (statSync(file).size > MAX_RECORD) return [];
    text = readFileSync(file, 'utf8');
  } catch {
    return [];
  }
  const found = v.safeParse(v.pipe(v.string(), v.parseJson(), v.looseObject({ records: v.unknown() })), text);
  return found.success ? recordsOf(found.output.records) : []; // cut off by somebody's kill: it is told, not relied upon
}

export const leftBytes = ({ left_bytes }: ParkRecord): number =>
  Object.values(left_bytes).reduce((sum, each) => sum + each, 0);
