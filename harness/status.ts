// SPDX-License-Identifier: MIT
// `cudapool status`: what the pool does now.
import type { Command } from 'commander';
import type { PoolStatus } from './adapters/cudapoold.ts';
import { wholeNumber } from './arguments.ts';
import { gib, recordLine } from './container/images.ts';
import type { Park, ParkRecord } from './container/records.ts';
import { CudapoolError } from './errors.ts';
import { print, printJson, table } from './output.ts';

export function registerStatus(program: Command): void {
  program
    .command('status')
    .description('what the pool does now; with --pid, what the shim in a process says')
    .option('--socket <path>', "the pool's socket (default: CUDAPOOL_SOCKET)")
    .option('--pid <pid>', 'the shim of this process', wholeNumber(1, 4_194_304))
    .option('--json', 'print it as JSON')
    .action(async (flags: { socket?: string; pid?: number; json?: boolean }) => {
      const { poolState, shimReport } = await import('./adapters/cudapoold.ts');
      if (flags.pid !== undefined) {
        const report = await shimReport(flags.pid, { socket: flags.socket });
        if (flags.json === true) printJson({ schema: 'cudapool.shim/1', ...report });
        else print(table([], flatten(report)));
        return;
      }
      const state = await poolState({ socket: flags.socket });
      if (flags.json === true) printJson({ schema: 'cudapool.status/1', ...state });
      else if (state.running) await printStatus(state.status);
      if (!state.running) {
        if (flags.json === true) process.exitCode = 1;
        else {
          throw new CudapoolError('ERR_CUDAPOOL_NO_POOL', state.absent ? 'there is no pool' : state.why, {
            hint: state.absent
              ? "`cudapool pool start` starts one; so does CRIU's patched plugin when it is needed"
              : '`cudapool pool restart` replaces it',
          });
        }
      }
    });
}

interface Count {
  ok: number;
  failed: number;
  total_us: number;
  max_us: number;
}

const isCount = (entry: [string, unknown]): entry is [string, Count] =>
  typeof entry[1] === 'object' && entry[1] !== null && 'total_us' in entry[1];

/** For people: the actions as a table, and only those that there have been. */
async function printStatus({ schema: _schema, actions, parks, records, ...rest }: PoolStatus): Promise<void> {
  const { parksOf, recordsOf } = await import('./container/records.ts');
  const kinds = Object.entries(actions);
  print(table([], flatten({ ...rest, actions: Object.fromEntries(kinds.filter((entry) => !isCount(entry))) })));
  const ms = (us: number): string => (us / 1000).toFixed(1);
  const rows = kinds
    .filter(isCount)
    .filter(([, { ok, failed }]) => ok + failed > 0)
    .map(([name, { ok, failed, total_us, max_us }]) => [
      name,
      `${ok}`,
      `${failed}`,
      ms(total_us / (ok + failed)),
      ms(max_us),
    ]);
  printParks(parksOf(parks));
  printRecords(recordsOf(records));
  if (rows.length > 0) print(`\n${table(['action', 'ok', 'failed', 'mean ms', 'max ms'], rows, [1, 2, 3, 4])}`);
}

const seconds = (s: number): string =>
  s < 120
    ? `${s} s`
    : s < 7200
      ? `${Math.round(s / 60)} min`
      : s < 172_800
        ? `${Math.round(s / 3600)} h`
        : `${Math.round(s / 86_400)} d`;

/** Whose it is: the container's id, as podman shortens it, or the process. */
const ownerOf = ({ container, process, pid }: { container: string; process: string; pid: number }): string =>
  container === '' ? `${process} (${pid})` : `${container.slice(0, 12)} ${process}`;

function printParks(parks: readonly Park[]): void {
  if (parks.length === 0) return;
  const rows = parks.map((park) => [
    ownerOf(park),
    gib(park.bytes),
    park.state === 'saved' ? park.tier : `${park.tier}, ${park.state}`,
    seconds(park.age_s),
    gib(park.image_bytes),
    park.path,
    park.token,
  ]);
  print(`\n${table(['parked', 'size', 'tier', 'age', 'on disk', 'image', 'token'], rows, [1, 3, 4])}`);
}

const RECORDS_SHOWN = 5;

function printRecords(records: readonly ParkRecord[]): void {
  if (records.length === 0) return;
  print('\nlast checkpoints and restores');
  for (const record of records.slice(0, RECORDS_SHOWN)) print(`  ${record.stage}: ${recordLine(record)}`);
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
