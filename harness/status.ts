// SPDX-License-Identifier: MIT
// `cudapool status`: what the pool does now.
import type { Command } from 'commander';
import { CudapoolError } from './errors.ts';
import { print, printJson, table } from './output.ts';

export function registerStatus(program: Command): void {
  program
    .command('status')
    .description('what the pool does now; with --pid, what the shim in a process says')
    .option('--socket <path>', "the pool's socket (default: CUDAPOOL_SOCKET)")
    .option('--pid <pid>', 'the shim of this process')
    .option('--json', 'print it as JSON')
    .action(async (flags: { socket?: string; pid?: string; json?: boolean }) => {
      const { poolState, shimReport } = await import('./adapters/cudapoold.ts');
      if (flags.pid !== undefined) {
        const { wholeNumber } = await import('./arguments.ts');
        const report = await shimReport(wholeNumber(1, 4_194_304)(flags.pid), { socket: flags.socket });
        if (flags.json === true) printJson({ schema: 'cudapool.shim/1', ...report });
        else print(table([], flatten(report)));
        return;
      }
      const state = await poolState({ socket: flags.socket });
      if (flags.json === true) printJson({ schema: 'cudapool.status/1', ...state });
      else if (state.running) print(table([], flatten(state.status)));
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
