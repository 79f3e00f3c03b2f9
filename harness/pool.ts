// SPDX-License-Identifier: MIT
// `cudapool pool start | stop | restart`.
import type { Command } from 'commander';
import { wholeNumber } from './arguments.ts';
import { CudapoolError } from './errors.ts';
import { printJson, say, warn } from './output.ts';

interface PoolFlags {
  socket?: string;
  idle?: number;
  contexts?: number;
  json?: boolean;
  dryRun?: boolean;
}

type Verb = 'start' | 'stop' | 'restart';

export function registerPool(program: Command): void {
  const pool = program.command('pool').description('the resident pool: start, stop, restart');
  const verb = (name: Verb, description: string): Command =>
    pool
      .command(name)
      .description(description)
      .option('--socket <path>', "the pool's socket (default: CUDAPOOL_SOCKET)")
      .option('--dry-run', 'print the commands, run none')
      .option('--json', "print the pool's state afterwards as JSON")
      .action((flags: PoolFlags) => act(name, flags));
  for (const command of [
    verb('start', 'start a pool, unless there is one'),
    verb('restart', 'stop the pool, if there is one, and start the one of this tree'),
  ]) {
    command
      .option('--idle <seconds>', 'end after so long without a client; 0 never', wholeNumber(0, 86_400))
      .option('--contexts <n>', 'devices on which a context is kept warm', wholeNumber(0, 64));
  }
  verb('stop', 'end the pool');
}

async function act(verb: Verb, flags: PoolFlags): Promise<void> {
  const { poolState, startPool, stopPool } = await import('./adapters/cudapoold.ts');
  const place = { socket: flags.socket };
  const state = await poolState(place);
  if (verb === 'start' && !state.running && !state.absent) {
    throw new CudapoolError('ERR_CUDAPOOL_POOL_UNUSABLE', `there is a pool that cannot be used: ${state.why}`, {
      hint: 'cudapool pool restart',
    });
  }
  const there = state.running || !state.absent;
  if (verb !== 'start' && there) await stopPool(place);
  if (verb !== 'stop' && !(verb === 'start' && there)) {
    await startPool(place, { idleS: flags.idle, contexts: flags.contexts });
  }
  if (flags.dryRun === true) return;
  const after = await poolState(place);
  if (flags.json === true) printJson({ schema: 'cudapool.pool/1', was_running: there, ...after });
  else if (verb === 'stop') say(there ? 'the pool has ended' : 'there was no pool');
  else if (after.running) {
    const { pid, socket, worker } = after.status;
    say(`${there && verb === 'start' ? 'a pool is running already' : 'the pool is running'}: pid ${pid}, ${socket}`);
    if (worker.state === 'failed') warn(`its driver cannot be used: ${worker.text}`, 'cudapool check');
  }
}
