// SPDX-License-Identifier: MIT
// cudapoold: starting, asking and stopping the pool, and the table of options that it knows.
import { existsSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import * as v from 'valibot';
import { CudapoolError, requireRoot, unfitError } from '../errors.ts';
import { built } from '../paths.ts';
import { type ExecResult, exec, lastLines, look } from './exec.ts';

export interface PoolPlace {
  /** Default: CUDAPOOL_SOCKET, the configuration file, or the daemon's own default. */
  socket?: string | undefined;
  /** Default: the one in this tree. */
  daemon?: string | undefined;
  env?: Record<string, string | undefined> | undefined;
}

export function daemonOf({ daemon }: PoolPlace): string {
  const path = daemon ?? (process.env.CUDAPOOL_DAEMON || built.cudapoold);
  if (!existsSync(path)) {
    throw unfitError(
      'ERR_CUDAPOOL_NOT_BUILT',
      `${path} is not there`,
      daemon ? 'correct the path' : 'cudapool setup --for use',
    );
  }
  return path;
}

const socketArgs = ({ socket }: PoolPlace): string[] => (socket === undefined ? [] : ['--socket', socket]);

async function ask(place: PoolPlace, args: readonly string[], timeoutMs = 15_000): Promise<ExecResult> {
  return look(daemonOf(place), [...args, ...socketArgs(place)], {
    timeoutMs,
    reject: false,
    ...(place.env !== undefined && { env: place.env }),
  });
}

const Option = v.object({
  name: v.string(),
  environment: v.string(),
  type: v.picklist(['BOOL', 'NUMBER', 'STRING']),
  default: v.string(),
  min: v.number(),
  max: v.number(),
  readers: v.array(v.picklist(['pool', 'shim', 'plugin', 'harness'])),
  text: v.string(),
  value: v.optional(v.union([v.string(), v.number()])),
  source: v.optional(v.picklist(['environment', 'file', 'default'])),
});
export type PoolOption = v.InferOutput<typeof Option>;

/** How wire/client.c says that nobody listens, that a pool of another version does, and that the socket is not for everybody. */
const ABSENT = /: no pool answers there/;
const OTHER_VERSION = /speaks version \d+, this client/;
const FORBIDDEN = /: permission denied: be root/;

const forbidden = (why: string): CudapoolError =>
  unfitError('ERR_CUDAPOOL_PERMISSION', why, 'run it again with sudo, or as a member of CUDAPOOL_GROUP');

/** What the daemon said on stderr, without its log prefix. */
const complaint = (ran: ExecResult): string =>
  lastLines(ran.stderr || ran.stdout, 1)[0]?.replace(/^cudapoold?(\[\d+\])?: */, '') ?? 'it said nothing';

/** The table of wire/options.def, with the values that hold here. A configuration that is wrong is an error. */
export async function poolOptions(place: PoolPlace = {}): Promise<PoolOption[]> {
  const ran = await ask(place, ['--options']);
  if (ran.exitCode !== 0) {
    throw new CudapoolError('ERR_CUDAPOOL_CONFIG', complaint(ran), {
      hint: 'docs/options.md describes what can be set, and where',
    });
  }
  return parse(v.array(Option), ran, 'options');
}

function parse<T extends v.GenericSchema>(schema: T, ran: ExecResult, what: string): v.InferOutput<T> {
  let document: unknown;
  try {
    document = JSON.parse(ran.stdout);
  } catch (cause) {
    throw strange(ran, what, cause);
  }
  const parsed = v.safeParse(schema, document);
  if (!parsed.success) throw strange(ran, what, new v.ValiError(parsed.issues));
  return parsed.output;
}

const strange = (ran: ExecResult, what: string, cause: unknown): CudapoolError =>
  new CudapoolError(
    'ERR_CUDAPOOL_DAEMON_VERSION',
    `the daemon reports its ${what} in a form that this version does not know`,
    {
      cause,
      lines: lastLines(ran.stdout, 3),
      hint: 'the daemon is of another version: `cudapool pool restart` starts the one of this tree',
    },
  );

/** What of pool/status.c's report others than people look at; the rest is passed on as it is. */
const Status = v.looseObject({
  build: v.string(),
  pid: v.number(),
  socket: v.string(),
  uptime_ms: v.number(),
  memory_kb: v.nullable(v.number()),
  descriptors: v.nullable(v.number()),
  worker: v.looseObject({
    pid: v.number(),
    state: v.picklist(['starting', 'warm', 'failed']),
    generation: v.number(),
    replaced: v.number(),
    driver_version: v.number(),
    devices: v.number(),
    contexts: v.number(),
    memory_kb: v.nullable(v.number()),
    descriptors: v.nullable(v.number()),
    text: v.string(),
  }),
  actions: v.record(v.string(), v.unknown()),
  held_count: v.number(),
  held: v.array(
    v.looseObject({
      pid: v.number(),
      name: v.string(),
      locked: v.boolean(),
      checkpointed: v.boolean(),
      parked: v.boolean(),
      under_way: v.nullable(v.string()),
      giving_back: v.boolean(),
    }),
  ),
  park_count: v.number(),
  given_back: v.object({ ok: v.number(), failed: v.number() }),
  connections: v.looseObject({ open: v.number(), accepted: v.number(), refused: v.number() }),
  errors: v.array(v.object({ ago_ms: v.number(), text: v.string() })),
});
export type PoolStatus = v.InferOutput<typeof Status>;

export type PoolState =
  | { running: true; status: PoolStatus }
  /** There is none (`absent`), or one that cannot be asked. */
  | { running: false; absent: boolean; why: string };

/** What the pool reports; a pool that is not there, or of another version, is no error here. A wrong configuration is. */
export async function poolState(place: PoolPlace = {}): Promise<PoolState> {
  const ran = await ask(place, ['--status']);
  if (ran.exitCode === 0) return { running: true, status: parse(Status, ran, 'status') };
  const why = complaint(ran);
  const absent = ABSENT.test(why);
  if (FORBIDDEN.test(why)) throw forbidden(why);
  if (!absent) await poolOptions(place); // is it the configuration?
  return { running: false, absent, why };
}

/** Starts a pool in the background; returns when it takes clients. */
export async function startPool(
  place: PoolPlace,
  options: { idleS?: number | undefined; contexts?: number | undefined },
): Promise<void> {
  requireRoot('start the pool');
  const args = ['--daemonize', ...socketArgs(place)];
  if (options.idleS !== undefined) args.push('--idle', `${options.idleS}`);
  if (options.contexts !== undefined) args.push('--contexts', `${options.contexts}`);
  const ran = await exec(daemonOf(place), args, {
    timeoutMs: 30_000,
    reject: false,
    ...(place.env !== undefined && { env: place.env }),
  });
  if (ran.exitCode !== 0) {
    throw new CudapoolError('ERR_CUDAPOOL_POOL_START', `the pool did not start: ${complaint(ran)}`, {
      lines: lastLines(ran.stderr),
      hint: `see more with: CUDAPOOL_LOG=4 ${ran.command.replace('--daemonize', '--foreground')}`,
    });
  }
}

/** Ends the pool. It refuses while it holds processes of a dump or restore under way. */
export async function stopPool(place: PoolPlace): Promise<void> {
  const ran = await exec(daemonOf(place), ['--stop', ...socketArgs(place)], {
    timeoutMs: 30_000,
    reject: false,
    ...(place.env !== undefined && { env: place.env }),
  });
  if (ran.exitCode === 0) return;
  const why = complaint(ran);
  if (FORBIDDEN.test(why)) throw forbidden(why);
  if (OTHER_VERSION.test(why) && (await terminate(place))) return;
  throw new CudapoolError('ERR_CUDAPOOL_POOL_STOP', `the pool was not stopped: ${why}`, {
    hint: 'see what it holds: cudapool status',
  });
}

/** A pool of another version understands no message of ours; SIGTERM every version understands. */
async function terminate(place: PoolPlace): Promise<boolean> {
  const socket = place.socket ?? (await poolOptions(place)).find((option) => option.name === 'socket')?.value;
  let pid: number;
  try {
    pid = Number(readFileSync(`${socket}.lock`, 'utf8').trim()); // the pool holds this file, and wrote its pid there
    if (!/\/cudapoold( \(deleted\))?$/.test(readlinkSync(`/proc/${pid}/exe`))) return false;
    process.kill(pid, 'SIGTERM');
  } catch {
    return false;
  }
  for (const end = performance.now() + 15_000; performance.now() < end; ) {
    if (!existsSync(`/proc/${pid}`)) return true;
    await sleep(20);
  }
  return false;
}

/** What `cudapoold --version` says. */
export async function daemonVersion(place: PoolPlace = {}): Promise<string> {
  const { stdout } = await ask(place, ['--version']);
  return stdout.trim();
}

/** What the shim in this process says of itself: a JSON object, whose fields are those of wire/control_page.h. */
export async function shimReport(pid: number, place: PoolPlace = {}): Promise<Record<string, unknown>> {
  const ran = await look(daemonOf(place), ['--shim', `${pid}`], { reject: false });
  if (ran.exitCode !== 0) {
    const said = v.safeParse(v.pipe(v.string(), v.parseJson(), v.object({ text: v.string() })), ran.stdout);
    const why = said.success ? said.output.text : complaint(ran);
    throw new CudapoolError('ERR_CUDAPOOL_NO_SHIM', `process ${pid} shows no shim: ${why}`, {
      hint: /permission/i.test(why)
        ? 'run it again with sudo'
        : 'the application gets the shim when it is started: cudapool run -- COMMAND',
    });
  }
  return parse(v.looseObject({}), ran, `shim in process ${pid}`);
}

/** Where GPU memory that is parked lies. */
export type Tier = 'hot' | 'staged' | 'cold';

/** What a pool found, or let go of (wire/message.h: struct cudapool_found). */
const Found = v.looseObject({
  count: v.number(),
  bytes: v.number(),
  /** Of those: on the GPU already, or evicted. */
  hot_bytes: v.number(),
  text: v.optional(v.string(), ''),
});
export type Found = v.InferOutput<typeof Found>;

/** The pool has limits of its own, on progress; this one is only for a pool that says nothing any more. */
const MOVE_MS = 3_700_000;

/** A request that the pool answers with FOUND. It changes nothing that a restore would miss, so a dry run prints it. */
async function move(place: PoolPlace, args: readonly string[], what: string): Promise<Found | undefined> {
  const ran = await exec(daemonOf(place), [...args, ...socketArgs(place)], {
    timeoutMs: MOVE_MS,
    reject: false,
    ...(place.env !== undefined && { env: place.env }),
  });
  if (ran.dry) return undefined;
  if (ran.exitCode === 0) return parse(Found, ran, 'answer');
  const why = complaint(ran);
  if (FORBIDDEN.test(why)) throw forbidden(why);
  if (ABSENT.test(why)) {
    throw new CudapoolError('ERR_CUDAPOOL_NO_POOL', 'there is no pool', { hint: '`cudapool pool start` starts one' });
  }
  throw new CudapoolError('ERR_CUDAPOOL_TIER', `the pool could not ${what}: ${why}`, {
    hint: 'see what it has: cudapool status',
  });
}

/** Lets go of the hot memory of one park, or of all; cold: of what is in the page cache as well. Undefined in a dry run. */
export const evict = (
  place: PoolPlace,
  { token = 'all', tier = 'staged' }: { token?: string; tier?: 'staged' | 'cold' },
): Promise<Found | undefined> => move(place, ['--evict', token, '--tier', tier], 'evict parked memory');

/** Brings the images of a checkpoint to that tier; returns when they are there. Undefined in a dry run. */
export const prefetch = (
  place: PoolPlace,
  { dir, tier = 'hot' }: { dir: string; tier?: 'hot' | 'staged' },
): Promise<Found | undefined> => move(place, ['--prefetch', dir, '--tier', tier], 'prefetch images');

const VERIFY_MS = 3_600_000;

const size = v.pipe(v.number(), v.integer(), v.minValue(0));

/** What an image says of itself (pool/inspect.c); in a file that somebody altered, anything that its checksums allow. */
const ImageReport = v.looseObject({
  version: v.number(),
  token: v.string(),
  dump: v.string(),
  created: v.string(),
  process: v.string(),
  pid: v.number(),
  build: v.string(),
  driver_version: v.number(),
  file_bytes: size,
  bytes: size,
  zero_percent: v.number(),
  pieces: size,
  smallest_piece_bytes: size,
  largest_piece_bytes: size,
  devices: v.array(v.looseObject({ uuid: v.string(), bytes: size, left_bytes: size })),
  verify_ms: v.optional(v.number()),
});
export type ImageReport = v.InferOutput<typeof ImageReport>;

/** What an image says of itself; `verify`: all of its content is read, and its checksums checked. An image that is bad is an error. */
export async function imageReport(
  file: string,
  { verify = false, onLine }: { verify?: boolean; onLine?: (line: string) => void } = {},
  place: PoolPlace = {},
): Promise<ImageReport> {
  const ran = await look(daemonOf(place), [verify ? '--verify' : '--inspect', file], {
    reject: false,
    timeoutMs: verify ? VERIFY_MS : 60_000,
    ...(onLine !== undefined && { onLine }),
  });
  if (ran.exitCode === 0) return parse(ImageReport, ran, 'image');
  const said = v.safeParse(v.pipe(v.string(), v.parseJson(), v.looseObject({ text: v.string() })), ran.stdout);
  throw new CudapoolError('ERR_CUDAPOOL_IMAGE', `${file}: ${said.success ? said.output.text : complaint(ran)}`, {
    hint: 'the checkpoint that it belongs to cannot be restored with it: take another one, or its copy from where it was exported',
    ...(said.success && { details: said.output }),
  });
}
