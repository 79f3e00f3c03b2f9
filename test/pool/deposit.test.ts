// SPDX-License-Identifier: MIT
// A keeper that is killed under systemd: what it parked and had not saved yet is there again.
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { buildSnippets, built, inRoot, type SoftCuda, softCuda, tempDir, until } from '../support/index.ts';
import { type App, type Client, imagesIn, PATH, type Status, startApp, startClient } from './support.ts';

const programs = await buildSnippets('pool');
const MiB = 1 << 20;
const PIECES = 300; // more than one message has

t.jobs = 2;

interface Scene {
  soft: SoftCuda;
  app: App;
  criu: Client;
  images: string;
  socket: string;
  child: ChildProcess;
  /** What the fake systemd has said so far. */
  said: string[];
  /** What the pools have logged so far. */
  log(): string;
  /** Tells the fake systemd one line (systemd.c). */
  tell(line: string): void;
  /** Whether it does from now on. */
  listen(does: boolean): Promise<void>;
  status(): Promise<Status>;
  /** Kills the keeper; passes when the next one serves. */
  kill(): Promise<void>;
  /** What systemd keeps, by name. */
  kept(): string[];
}

/** A fake systemd with a pool, whose worker copies slowly, an application with pieces, and a CRIU with a directory. */
async function scene(t: Test, most = 16, mode = 'honest', gbps = 0.005, more = {}): Promise<Scene> {
  const soft = softCuda(t);
  const dir = tempDir(t);
  const images = tempDir(t);
  const socket = join(dir, 'pool.sock');
  const config = join(dir, 'cudapool.conf');
  const costs = join(dir, 'costs.conf');
  writeFileSync(config, '');
  const measured = readFileSync(inRoot('softcuda', 'costs-h200.conf'), 'utf8');
  writeFileSync(costs, measured.replace(/^copy_pinned_gbps.*$/m, `copy_pinned_gbps = ${gbps}`));
  const daemon = process.env.CUDAPOOL_TEST_DAEMON ?? built.cudapoold;
  const env = {
    ...process.env,
    ...soft.env,
    CUDAPOOL_CONFIG: config,
    CUDAPOOL_IMAGE_DIR: tempDir(t),
    SOFTCUDA_COSTS: costs,
    ...more,
  };
  const child = spawn(
    join(programs, 'systemd'),
    [join(dir, 'notify'), socket, String(most), daemon, '--foreground', '--log', '3'],
    { env, stdio: ['pipe', 'pipe', 'pipe'] },
  );
  const gone = new Promise<void>((resolve) => child.once('close', () => resolve()));
  t.teardown(async () => {
    child.stdin.end();
    await gone;
  });
  const said: string[] = [];
  createInterface({ input: child.stdout }).on('line', (line) => said.push(line));
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    log += text;
  });
  const count = (line: string): number => said.filter((heard) => heard === line).length;
  const status = async (): Promise<Status> => {
    const { stdout } = await exec(daemon, ['--status', '--socket', socket], { timeoutMs: 10_000, env });
    return JSON.parse(stdout) as Status;
  };
  const warm = (): Promise<boolean> =>
    until('the pool is warm', async () => (await status()).worker.state === 'warm', 15_000, 30);
  await until('the pool starts', () => count('ready') === 1, 15_000).catch(() => t.fail(log));
  await warm();
  const app = await startApp(t, programs, soft, ['shim', mode, String(PIECES)]);
  const criu = startClient(t, programs, socket, 'criu');
  await criu.say('connect plugin');
  t.equal((await criu.say(`images dump ${images}`)).error, 0, 'CRIU names its directory');
  return {
    soft,
    app,
    criu,
    images,
    socket,
    child,
    said,
    log: () => log,
    tell: (line) => child.stdin.write(`${line}\n`),
    listen: async (does) => {
      const line = does ? 'speak' : 'silent';
      const before = count(line);
      child.stdin.write(`${line}\n`);
      await until('it is told', () => count(line) > before);
    },
    status,
    kill: async () => {
      const before = count('ready');
      child.stdin.write('kill\n');
      await until('the next keeper serves', () => count('ready') > before, 15_000);
      await warm();
    },
    kept: () => {
      const names: string[] = [];
      for (const line of said) {
        const [what, name = ''] = line.split(' ');
        if (what === 'kept') names.push(name);
        if (what === 'removed') while (names.includes(name)) names.splice(names.indexOf(name), 1);
      }
      return names;
    },
  };
}

const nothingHeld = (s: Scene): Promise<boolean> =>
  until('nothing is held', async () => (await s.status()).held_count === 0, 15_000, 30);
const nothingKept = (s: Scene): Promise<boolean> => until('systemd keeps nothing', () => s.kept().length === 0);

t.test('killed before the image is complete, and CRIU dies', async (t) => {
  const s = await scene(t);
  t.match(
    await s.criu.say(`do lock ${s.app.pid}`),
    { error: 0, path: PATH.parked, parked: 2 * PIECES * MiB },
    'parked',
  );
  t.match(s.kept(), [/^cudapool-[0-9a-f]{32}$/], 'systemd has one descriptor of it');
  await s.kill();
  t.same(imagesIn(s.images), [], 'there was no image');
  t.match(
    await s.status(),
    {
      held: [{ pid: s.app.pid, owner_pid: s.criu.pid, parked: true }],
      parks: [{ state: 'saving', tier: 'hot', bytes: 2 * PIECES * MiB }],
    },
    'the next keeper has the memory, and writes the image',
  );
  await s.criu.kill();
  await s.app.runs('the application runs on, with its memory', 30_000);
  await nothingHeld(s);
  t.match(await s.status(), { given_back: { ok: 1, failed: 0 }, park_count: 0, errors: [] }, 'and nothing is left');
  t.ok(await nothingKept(s), 'nor with systemd');
  t.same(imagesIn(s.images), [], 'nor in the directory');
});

t.test('killed again and again', async (t) => {
  const s = await scene(t);
  await s.criu.say(`do lock ${s.app.pid}`);
  for (let i = 0; i < 3; i++) await s.kill();
  await s.criu.kill();
  await s.app.runs('the application runs on, with its memory', 30_000);
  await nothingHeld(s);
  t.ok(await nothingKept(s), 'systemd keeps nothing');
});

t.test('the next keeper lacks descriptors, the one after it does not', async (t) => {
  const file = join(tempDir(t), 'nopidfd');
  const env = {
    LD_PRELOAD: join(programs, 'nopidfd.so'),
    NOPIDFD: file,
    ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:verify_asan_link_order=0`,
  };
  const s = await scene(t, 16, 'honest', 0.005, env);
  await s.criu.say(`do lock ${s.app.pid}`);
  writeFileSync(file, String(s.app.pid));
  await s.kill();
  t.match(
    await s.status(),
    { held_count: 0, errors: [{ text: /cannot be taken over .*raise LimitNOFILE.*restart the pool/ }] },
    'it says what it cannot take over',
  );
  t.equal(s.kept().length, 1, 'and leaves it with systemd');
  writeFileSync(file, '0');
  await s.kill();
  t.match(
    await s.status(),
    { held: [{ pid: s.app.pid, owner_pid: s.criu.pid, parked: true }], errors: [] },
    'from which the last one has it',
  );
  await s.criu.kill();
  await s.app.runs('the application runs on, with its memory', 30_000);
  await nothingHeld(s);
  t.ok(await nothingKept(s), 'systemd keeps nothing');
});

t.test('killed before the image is complete, and the dump goes on', async (t) => {
  const s = await scene(t, 16, 'honest', 0.05);
  await s.criu.say(`do lock ${s.app.pid}`);
  await s.kill();
  await s.criu.say('close');
  await s.criu.say('connect plugin');
  t.match(await s.criu.say(`do checkpoint ${s.app.pid}`), { error: 0 }, 'checkpoint');
  t.equal(imagesIn(s.images).length, 1, 'ends when the image is complete');
  t.ok(await nothingKept(s), 'and systemd keeps nothing any more');
  await s.kill();
  t.match(await s.status(), { held: [{ checkpointed: true, parked: true }] }, 'killed after that: it is still known');
  await s.criu.kill();
  await s.app.runs('the application runs on, with its memory, from the image', 30_000);
});

t.test('what was parked dies with its keeper', async (t) => {
  const s = await scene(t);
  await s.criu.say(`do lock ${s.app.pid}`);
  await s.listen(false); // what the keeper says of its end is not heard
  s.app.child.kill('SIGKILL');
  await nothingHeld(s);
  const busy = s.kept();
  t.equal(busy.length, 1, 'systemd has not heard of it');
  await s.listen(true);
  t.ok(await nothingKept(s), 'and lets go when it listens');
});

t.test('systemd is silent', async (t) => {
  const s = await scene(t);
  await s.listen(false);
  const lock = await s.criu.say(`do lock ${s.app.pid}`);
  t.match(lock, { path: PATH.parked, line: /systemd did not take the descriptors .* within 5000 ms/ }, 'lock says so');
  t.ok(lock.error < 0, 'and fails');
  await s.app.runs('the application runs on', 30_000);
  t.match(await s.status(), { held_count: 0, park_count: 0 }, 'nothing is held');
  await s.listen(true);
  t.ok(await until('it listens', () => s.said.some((line) => /^kept cudapool-[0-9a-f]{32}$/.test(line))), 'late');
  t.ok(await nothingKept(s), 'systemd keeps nothing of it');
  t.match(await s.criu.say(`do lock ${s.app.pid}`), { error: 0, path: PATH.parked }, 'and the next lock parks');
});

t.test('systemd is silent for longer than the lock may take', async (t) => {
  const s = await scene(t);
  await s.listen(false);
  t.match(
    await s.criu.say(`do lock ${s.app.pid} 1500`),
    { line: /systemd did not take the descriptors .* \(\d+ ms in all\)/ },
    'it fails',
  );
  await s.app.runs('the application runs on', 30_000);
});

t.test('systemd keeps no more', async (t) => {
  const s = await scene(t, 2); // one and its probe
  const other = await startApp(t, programs, s.soft, ['shim', 'honest', '3']);
  t.equal((await s.criu.say(`do lock ${s.app.pid}`)).error, 0, 'one is parked');
  const lock = await s.criu.say(`do lock ${other.pid}`);
  t.match(lock, { path: PATH.parked, line: /FileDescriptorStoreMax=/ }, 'the next one is not, and lock says why');
  t.ok(lock.error < 0, 'and fails');
  await other.runs('it runs on', 30_000);
  await s.kill();
  await s.criu.kill();
  await s.app.runs('the first one is given back after all', 30_000);
});

t.test('systemd keeps nothing at all', async (t) => {
  const s = await scene(t, 0, 'honest', 5);
  t.match(s.log(), /systemd keeps no descriptors for this service/, 'that is said');
  t.equal((await s.criu.say(`do lock ${s.app.pid}`)).error, 0, 'and parking works as without it');
  t.equal((await s.criu.say(`do checkpoint ${s.app.pid}`)).error, 0, 'checkpoint');
  await s.criu.say('release undo');
  await s.app.runs('the application runs on', 30_000);
});

t.test('systemd hands over what belongs to nobody', async (t) => {
  const s = await scene(t);
  await s.criu.say(`do lock ${s.app.pid}`);
  s.tell('foreign');
  await until('it has them', () => s.kept().length === 5);
  await s.kill();
  t.equal((s.log().match(/descriptors that belong to no parked process/g) ?? []).length, 1, 'that is said once');
  t.ok(await until('they go', () => s.kept().length === 1), 'and it is told to let go of them');
  const { pid } = await s.status();
  const open = readdirSync(`/proc/${pid}/fd`).length;
  t.ok(open < PIECES + 60, `nothing stays open (${open})`);
  await s.criu.kill();
  await s.app.runs('what is known is given back', 30_000);
});
