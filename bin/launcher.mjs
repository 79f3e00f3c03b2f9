// SPDX-License-Identifier: MIT
// Runs the compiled command, after installing its packages and compiling it where that is due.
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { root, stale } from './prepare.mjs';

if (Number.parseInt(process.versions.node, 10) < 20) {
  process.stderr.write(`error: cudapool needs Node.js 20 or newer; this is ${process.version}\n`);
  process.exit(3);
}

/** Set-up writes into both; where one is not there yet, into the root. */
function writable() {
  try {
    for (const dir of ['build', 'node_modules']) {
      accessSync(existsSync(join(root, dir)) ? join(root, dir) : root, constants.W_OK);
    }
    return true;
  } catch {
    return false;
  }
}

if (stale().length > 0) {
  if (!writable()) {
    process.stderr.write(`error: ${root} must be set up first, and you may not write there\n`);
    process.stderr.write('hint: run it once with sudo, or as the owner of that folder\n');
    process.exit(3);
  }
  // One at a time: several commands may start in a fresh clone. The kernel drops the lock of a dead holder.
  mkdirSync(join(root, 'build'), { recursive: true });
  const prepare = fileURLToPath(new URL('prepare.mjs', import.meta.url));
  const done = spawnSync(
    'flock',
    [
      '--close',
      '--timeout',
      '900',
      '--conflict-exit-code',
      '75',
      join(root, 'build', '.prepare.lock'),
      process.execPath,
      prepare,
    ],
    { stdio: ['ignore', 2, 2] }, // stdout is for data
  );
  if (done.status !== 0) {
    const why =
      done.status === 75
        ? 'another cudapool command has been setting up for 15 minutes'
        : 'setting up failed; what it said is above';
    process.stderr.write(`error: ${done.error?.message ?? why}\n`);
    process.exit(done.signal === 'SIGINT' ? 130 : 1);
  }
}

process.setSourceMapsEnabled(true);
const { main } = await import('../build/harness/cli.js');
process.exitCode = await main(process.argv.slice(2));
