// SPDX-License-Identifier: MIT
// The programs behind what is called measured: they build, and the software driver answers them as the H200's driver did.
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { inRoot, isRoot, skipUnless, softCuda } from '../support/index.ts';

const PROBES = inRoot('docs', 'results', 'h200-2026-11-22', 'probes');
const OUT = inRoot('build', 'c', 'probes');

t.before(async () => {
  mkdirSync(OUT, { recursive: true });
  await exec('make', ['-s', '-C', PROBES, `OUT=${OUT}`, 'WERROR=1'], { timeoutMs: 60_000 });
});

const lines = (text: string): string[] => text.split('\n').map((line) => line.trimEnd());
/** Of the H200's run: without what says how it ended, and a line that it ended within. */
const measured = (name: string): string[] =>
  lines(readFileSync(join(PROBES, `${name}.out`), 'utf8')).filter((line) => line !== '' && !/rc=\d+$/.test(line));

/** What the probe prints on the software driver; one that waits for ever, as it did there, is ended. */
async function probe(t: Test, name: string, limitS = 20, extra: Record<string, string> = {}): Promise<string[]> {
  const { env } = softCuda(t, extra);
  const args = ['--kill-after=1', String(limitS), join(OUT, name)];
  const { stdout } = await exec('timeout', args, { timeoutMs: (limitS + 20) * 1000, env, reject: false });
  return lines(stdout);
}

t.test('calls within host callbacks, and while a stream is captured', async (t) => {
  for (const name of ['callback', 'capture']) {
    // One answer there is a number that nobody wrote.
    const answered = (line: string): boolean => !line.startsWith('cuStreamIsCapturing(0)');
    const there = measured(name).filter(answered);
    const here = (await probe(t, name)).filter(answered);
    t.ok(there.length > 40);
    t.same(here.slice(0, there.length), there, name);
  }
});

t.test('functions for memory', async (t) => {
  // The expression with its result; of another layout than when it ran there.
  const answers = (all: readonly string[]): string[] =>
    all.filter((line) => line.startsWith('D(')).map((line) => line.replaceAll(/\s/g, ''));
  const differs = {
    memory: ['D(cuIpcGetMemHandle)(&ipc,p)0', 'D(cuIpcGetMemHandle)(&ipc,p+4096)0'], // not shared so here
    memory2: ['D(cuMemAllocAsync)(&big,4<<20,st)0', 'D(cuMemGetAddressRange_v2)(NULL,NULL,q)0'], // no memory of graphs here
  };
  for (const [name, known] of Object.entries(differs)) {
    const here = new Set(answers(await probe(t, name)));
    const there = answers(measured(name));
    t.ok(there.length > 60);
    t.same(
      there.filter((line) => !here.has(line)),
      known,
      name,
    );
  }
});

t.test('memory of a context, and of what is exported', async (t) => {
  const [context, held, closed] = await probe(t, 'context_memory');
  t.match(context, /^an empty context of another process: [\d.]+ MiB$/);
  t.equal(held, '1000 exported, released pieces hold 2000.0 MiB');
  t.match(closed, /right after it 0\.0 MiB are still in use$/);
});

t.test('a process with imported memory is lost', async (t) => {
  if (!skipUnless(t, isRoot, 'a checkpoint needs root')) return;
  // Free memory is another, and descriptors of the device are none here.
  const facts = (all: readonly string[]): string[] => all.filter((line) => line !== '' && !/free|^\d+$/.test(line));
  const there = facts(measured('imported'));
  t.same(there.slice(-3), ['  checkpoint 0 state 2', '  restore 801', '  unlock 401']);
  t.same(facts(await probe(t, 'imported', 5)).slice(0, there.length), there);
});

t.test("another device's memory", async (t) => {
  if (!skipUnless(t, isRoot, 'a checkpoint needs root')) return;
  // What takes how long is another thing; and so are these ends, where the software driver is stricter, or forgets less.
  const facts = (all: readonly string[]): string[] => all.filter((line) => line !== '' && !/ us$/.test(line));
  const stop = (all: readonly string[]): string[] => all.slice(0, all.indexOf("== stream-ordered, its pool's access"));
  const there = stop(facts(measured('reach')));
  t.ok(there.length > 150);
  t.same(stop(facts(await probe(t, 'reach', 15, { SOFTCUDA_DEVICES: '2' }))), there);
});
