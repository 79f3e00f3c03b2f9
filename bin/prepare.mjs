// SPDX-License-Identifier: MIT
// What the command itself needs: its npm packages, and its TypeScript compiled into build/. Run as a program, it does what is due.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = dirname(dirname(fileURLToPath(import.meta.url)));
const packagesStamp = join(root, 'node_modules', '.cudapool-lock-sha256');
const compiledStamp = join(root, 'build', '.compiled');

const lockHash = () =>
  createHash('sha256')
    .update(readFileSync(join(root, 'package-lock.json')))
    .digest('hex');

const read = (path) => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
};

const mtime = (path) => {
  try {
    return statSync(path).mtimeMs;
  } catch {
    return 0;
  }
};

/** The TypeScript sources, as paths below the root. */
function sources() {
  return ['harness', 'test'].flatMap((room) =>
    readdirSync(join(root, room), { recursive: true })
      .filter((name) => name.endsWith('.ts') && !name.includes('node_modules'))
      .map((name) => join(room, name)),
  );
}

/** What is due: 'packages', 'compile', both or nothing. */
export function stale() {
  const due = [];
  if (read(packagesStamp) !== lockHash()) due.push('packages');
  const compiled = mtime(compiledStamp);
  const files = sources();
  const newest = Math.max(mtime(join(root, 'tsconfig.json')), ...files.map((file) => mtime(join(root, file))));
  if (newest >= compiled || read(compiledStamp) !== files.sort().join('\n')) due.push('compile');
  return due;
}

function run(what, program, args) {
  process.stderr.write(`cudapool: ${what} …\n`);
  const { status, error } = spawnSync(program, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (status === 0) return;
  if (error) process.stderr.write(`error: ${program}: ${error.message}\n`);
  process.exit(1);
}

function installPackages() {
  run('installing the npm packages', 'npm', ['ci', '--no-audit', '--no-fund', '--loglevel', 'error']);
  writeFileSync(packagesStamp, lockHash());
}

function compile() {
  const started = new Date();
  const files = sources().sort();
  // Types are checked by `npm test`; a user's start need not wait for that.
  run('compiling', process.execPath, [join('node_modules', 'typescript', 'bin', 'tsc'), '--noCheck']);
  for (const gone of read(compiledStamp).split('\n')) {
    if (gone === '' || files.includes(gone)) continue;
    for (const ext of ['.js', '.js.map']) rmSync(join(root, 'build', gone.replace(/\.ts$/, ext)), { force: true });
  }
  mkdirSync(dirname(compiledStamp), { recursive: true });
  writeFileSync(compiledStamp, files.join('\n'));
  utimesSync(compiledStamp, started, started); // what was edited meanwhile is newer
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const due = stale(); // asked again: whoever held the lock before may have done it
  if (due.includes('packages')) installPackages();
  if (due.includes('compile')) compile();
}
