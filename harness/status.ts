// SPDX-License-Identifier: MIT
// `cudapool status`: what the pool says of itself, and of the GPU memory that it keeps.
import type { Command } from 'commander';
import type { PoolStatus } from './adapters/cudapoold.ts';
import { podmanArgs, wholeNumber } from './arguments.ts';
import { recordLine } from './container/images.ts';
import type { OwnImages } from './container/own-images.ts';
import type { Park, ParkRecord } from './container/records.ts';
import { CudapoolError, EXIT } from './errors.ts';
import { age, bytes, count, cudaVersion, print, printJson, table } from './output.ts';

interface StatusFlags {
  socket?: string;
  pid?: number;
  podmanArg?: readonly string[];
  json?: boolean;
}

export function registerStatus(program: Command): void {
  podmanArgs(
    program
      .command('status')
      .description('what the pool does now; with --pid, what the shim in a process says')
      .option('--socket <path>', "the pool's socket (default: CUDAPOOL_SOCKET)")
      .option('--pid <pid>', 'the shim of this process', wholeNumber(1, 4_194_304)),
  )
    .option('--json', 'print it as JSON')
    .action(async (flags: StatusFlags) => {
      const { poolState, shimReport } = await import('./adapters/cudapoold.ts');
      if (flags.pid !== undefined) {
        const report = await shimReport(flags.pid, { socket: flags.socket });
        if (flags.json === true) printJson({ schema: 'cudapool.shim/1', ...report });
        else print(table([], flatten(report)));
        return;
      }
      const state = await poolState({ socket: flags.socket });
      if (flags.json === true) {
        const { ownImages } = await import('./container/own-images.ts');
        printJson({ schema: 'cudapool.status/1', ...state, own_images: await ownImages().catch(() => null) });
        if (!state.running) process.exitCode = EXIT.FAILED;
      } else if (state.running) {
        await printStatus(state.status, flags);
      } else {
        throw new CudapoolError('ERR_CUDAPOOL_NO_POOL', state.absent ? 'there is no pool' : state.why, {
          hint: state.absent
            ? "`cudapool pool start` starts one; so does CRIU's patched plugin when it is needed"
            : '`cudapool pool restart` replaces it',
        });
      }
    });
}

async function printStatus(status: PoolStatus, flags: StatusFlags): Promise<void> {
  const { parksOf, recordsOf } = await import('./container/records.ts');
  const { ownImages } = await import('./container/own-images.ts');
  const parks = parksOf(status.parks);
  const records = recordsOf(status.records).slice(0, RECORDS_SHOWN);
  const names = await namesOf([...parks, ...records], flags);
  print(table([], summary(status, parks)));
  printParks(parks, names);
  printOwnImages(await ownImages().catch(() => undefined)); // a folder that may not be read has no say here
  printRecords(records, names);
  printActions(status);
}

/** What the containers are called, by id: podman is asked only if there are any, and not waited for if it hangs. */
async function namesOf(
  those: readonly { readonly container: string }[],
  flags: StatusFlags,
): Promise<ReadonlyMap<string, string>> {
  if (those.every(({ container }) => container === '')) return new Map();
  const { namesById } = await import('./adapters/podman.ts');
  return namesById({ globals: flags.podmanArg ?? [] });
}

const PID = (process: string, pid: number): string => `${process} (${pid})`;

const sizeOf = (parks: readonly Park[]): number => parks.reduce((sum, park) => sum + park.bytes, 0);

/** The pool and its worker, a few lines. */
function summary({ build, pid, socket, worker, ...rest }: PoolStatus, parks: readonly Park[]): string[][] {
  const { uptime_ms, held, held_count, given_back, connections, errors } = rest;
  const memory = (kb: number | null): string => (kb === null ? 'unknown' : bytes(kb * 1024));
  const hot = parks.filter(({ tier }) => tier === 'hot');
  const warm = [
    `CUDA ${cudaVersion(worker.driver_version)}`,
    count(worker.devices, 'device'),
    count(worker.contexts, 'warm context'),
  ].join(', ');
  const doing = ({ locked, checkpointed, parked, giving_back, under_way }: PoolStatus['held'][number]): string =>
    Object.entries({
      locked,
      checkpointed,
      parked,
      'being given back': giving_back,
      [under_way ?? '']: under_way !== null,
    })
      .flatMap(([what, is]) => (is ? [what] : []))
      .join(', ');
  return [
    ['pool', `process ${pid}, ${build}, up ${age(uptime_ms / 1000)}`],
    ['socket', socket],
    [
      'worker',
      `${worker.state}: process ${worker.pid}${worker.state === 'warm' ? `, ${warm}` : ''}` +
        (worker.text === '' ? '' : `; ${worker.text}`),
    ],
    ['replaced', count(worker.replaced, 'worker')],
    ['memory', `pool ${memory(rest.memory_kb)}, worker ${memory(worker.memory_kb)}`],
    ['descriptors', `pool ${rest.descriptors ?? 'unknown'}, worker ${worker.descriptors ?? 'unknown'}`],
    ['held', held_count === 0 ? 'nothing' : held_count === 1 ? '1 process' : `${held_count} processes`],
    ...held.map((each) => ['', `${PID(each.name, each.pid)}: ${doing(each)}`]),
    ['given back', `${given_back.ok}, failed ${given_back.failed}`],
    ['clients', `${connections.open} now, ${connections.accepted} in all, ${connections.refused} refused`],
    ['hot', hot.length === 0 ? 'nothing' : `${bytes(sizeOf(hot))} of GPU memory, ${count(hot.length, 'park')}`],
    ...errors.map(({ ago_ms, text }) => ['error', `${age(ago_ms / 1000)} ago: ${text}`]),
  ];
}

/** The token's first digits: as many as `evict` needs to know which one is meant. */
export const SHORT_TOKEN = 8;

function printParks(parks: readonly Park[], names: ReadonlyMap<string, string>): void {
  if (parks.length === 0) return;
  const rows = parks.map(({ container, process, pid, ...park }) => [
    container === '' ? PID(process, pid) : `${names.get(container) ?? container.slice(0, 12)} ${process}`,
    bytes(park.bytes),
    park.state === 'saved' ? park.tier : `${park.tier}, ${park.state}`,
    age(park.age_s),
    bytes(park.image_bytes),
    park.token.slice(0, SHORT_TOKEN),
  ]);
  const width = process.stdout.isTTY ? process.stdout.columns : undefined;
  const head = ['parked', 'size', 'tier', 'age', 'on disk', 'token'];
  print(`\n${table(head, rows, { right: [1, 3, 4], shrink: { column: 0, width } })}`);
}

function printOwnImages(own: OwnImages | undefined): void {
  if (own === undefined || own.count === 0) return;
  print(`\n${own.dir}: ${count(own.count, 'image')} of the drop-in, ${bytes(own.bytes)}`);
  print(
    `  the oldest is ${age(own.oldest_age_s)} old; \`cudapool image prune\` removes those that you name by their age`,
  );
}

const RECORDS_SHOWN = 5;

function printRecords(records: readonly ParkRecord[], names: ReadonlyMap<string, string>): void {
  if (records.length === 0) return;
  print('\nlast checkpoints and restores');
  for (const record of records) {
    const ago = `${age((Date.now() - Date.parse(record.at)) / 1000)} ago`;
    const name = names.get(record.container) ?? record.container.slice(0, 12);
    print(`  ${ago}, ${record.stage}${name === '' ? '' : ` of ${name}`}: ${recordLine(record)}`);
  }
}

interface Count {
  ok: number;
  failed: number;
  total_us: number;
  max_us: number;
}

const isCount = (entry: [string, unknown]): entry is [string, Count] =>
  typeof entry[1] === 'object' && entry[1] !== null && 'total_us' in entry[1];

/** Only those that there have been. */
function printActions({ actions }: PoolStatus): void {
  const ms = (us: number): string => (us / 1000).toFixed(1);
  const rows = Object.entries(actions)
    .filter(isCount)
    .filter(([, { ok, failed }]) => ok + failed > 0)
    .map(([name, { ok, failed, total_us, max_us }]) => [
      name,
      `${ok}`,
      `${failed}`,
      ms(total_us / (ok + failed)),
      ms(max_us),
    ]);
  if (rows.length === 0) return;
  print(`\n${table(['action', 'ok', 'failed', 'mean ms', 'max ms'], rows, { right: [1, 2, 3, 4] })}`);
}

/** Names and values, one a line: {a: {b: 1}} is 'a b', '1'. */
export function flatten(value: Record<string, unknown>, above = ''): string[][] {
  return Object.entries(value).flatMap(([key, item]) => {
    const name = above + key.replaceAll('_', ' ');
    if (Array.isArray(item)) {
      if (item.every((one) => typeof one !== 'object')) return [[name, item.join(', ') || '-']];
      return item.flatMap((one, i) => flatten(one as Record<string, unknown>, `${name} ${i} `));
    }
    if (typeof item === 'object' && item !== null) return flatten(item as Record<string, unknown>, `${name} `);
    return [[name, item === null || item === '' ? '-' : String(item)]];
  });
}
