// SPDX-License-Identifier: MIT
// `cudapool patch` on the released sources of CRIU: apply, build, verify, roll back; and what it refuses.
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { CudapoolError, EXIT } from '../../harness/errors.ts';
import { applyPatch } from '../../harness/patch/apply.ts';
import { diffPatch } from '../../harness/patch/diff.ts';
import { editedFiles, editText, readEdits } from '../../harness/patch/edits.ts';
import { rollbackPatch } from '../../harness/patch/rollback.ts';
import { verifyPatch } from '../../harness/patch/verify.ts';
import { cudapool, inRoot, tempDir } from '../support/index.ts';
import { canRun, pristineTree, versions } from './support.ts';

const PLUGIN = 'plugins/cuda/cuda_plugin.c';

/** All that differs between two trees, with symbolic links compared as such. */
async function differences(a: string, b: string): Promise<string> {
  const { stdout } = await exec('diff', ['-r', '--no-dereference', '-q', a, b], { timeoutMs: 60_000, reject: false });
  return stdout;
}

/** As the command line has it; slow, so only where that is what is tested. */
const command = async (verb: string, dir: string, ...more: string[]) => {
  const run = await cudapool(['patch', verb, '--criu-src', dir, '--json', ...more]);
  return { exitCode: run.exitCode, json: JSON.parse(run.stdout) };
};

/** What `verb` throws: it must refuse with this code, name a fix, and leave the tree as it is. */
async function refuses(t: Test, dir: string, code: string, verb: (dir: string) => Promise<unknown> = applyPatch) {
  const before = join(tempDir(t), 'before');
  await exec('cp', ['-a', dir, before], { timeoutMs: 30_000 });
  const error = await verb(dir).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof CudapoolError)) throw new Error(`expected ${code}, got ${String(error)}`);
  t.equal(error.code, code);
  t.ok(error.hint, `${code}: the fix is named: ${error.hint}`);
  t.equal(error.exit, EXIT.FAILED);
  t.equal(await differences(before, dir), '', 'nothing is changed');
  return error;
}

async function shell(dir: string, command: string): Promise<string> {
  const { stdout } = await exec('bash', ['-c', command], { cwd: dir, timeoutMs: 30_000, reject: false });
  return stdout;
}

for (const version of versions) {
  t.test(`CRIU ${version}`, async (t) => {
    const pristine = await pristineTree(t, version);
    if (pristine === undefined) return;
    const copy = async (): Promise<string> => {
      const dir = join(tempDir(t), 'criu');
      await exec('cp', ['-a', pristine, dir], { timeoutMs: 30_000 });
      return dir;
    };

    t.test('every edit finds its place once, and only there', async (t) => {
      const table = readEdits();
      for (const file of editedFiles(table)) {
        const original = readFileSync(join(pristine, file), 'utf8');
        const edits = table.edits.filter((edit) => edit.file === file);
        const result = editText(original, edits);
        if (!('text' in result)) return void t.fail(JSON.stringify(result.misplaced));
        const kept = new Set(result.text.split('\n'));
        t.ok(
          original.split('\n').every((line) => kept.has(line)),
          `${file}: no line of upstream's is lost`,
        );
        t.match(
          editText(`${original}\n${original}`, edits),
          { misplaced: edits.map((edit) => ({ edit })) },
          'a place that is there twice is refused',
        );
      }
      t.strictSame(
        [...new Set(table.edits.map((edit) => edit.change))].sort(),
        [1, 2, 3, 4, 5, 6, 7, 8],
        "the guide's six changes, and ours",
      );
      const used = new Set(table.edits.map((edit) => edit.insert));
      t.strictSame(
        readdirSync(inRoot('criu-plugin-patch', 'fragments')).sort(),
        [...used].sort(),
        'every fragment is used',
      );
    });

    t.test('apply, verify, diff, roll back', async (t) => {
      const dir = await copy();
      const planned = await diffPatch(dir);
      t.equal(planned.applied, false);
      t.equal(await differences(pristine, dir), '', 'diff writes nothing');
      t.match((await cudapool(['patch', 'apply', '--criu-src', dir, '--dry-run'])).stdout, /write .*cuda_plugin\.c/);
      t.equal(await differences(pristine, dir), '', 'a dry run writes nothing');

      t.equal((await command('apply', dir)).exitCode, 0);
      const cuda = join(dir, 'plugins', 'cuda');
      // The guide's commands, as typed there.
      t.equal(await shell(cuda, 'head -15 cuda_plugin.c | grep "cuda.h"'), '#include <cuda.h>');
      t.match(
        await shell(cuda, 'grep -n "init_gpu_context_pool" cuda_plugin.c'),
        /^\d+:static .*init_gpu_context_pool\(int stage\)$/m,
      );
      t.ok((await shell(cuda, 'grep -n "g_warm_context" cuda_plugin.c')).split('\n').length > 3);
      t.match(
        await shell(cuda, 'ls cuda_plugin.c*'),
        /^cuda_plugin\.c\ncuda_plugin\.c\.backup-\d{8}-\d{6}\ncuda_plugin\.c\.before-context-pool$/,
      );
      t.equal(await shell(cuda, `cmp cuda_plugin.c.before-context-pool ${join(pristine, PLUGIN)}`), '');

      const verified = await command('verify', dir);
      t.equal(verified.exitCode, 0);
      t.equal(verified.json.built, false);
      t.match(
        verified.json.checks.find((check: { name: string }) => check.name === 'line count increased'),
        { status: 'note', why: String },
      );

      const done = await diffPatch(dir);
      t.equal(done.applied, true);
      t.equal(done.diff, planned.diff, 'what was announced is what was done');
      const other = await copy();
      await exec('patch', ['-p1', '-s'], { cwd: other, input: done.diff, timeoutMs: 30_000 });
      t.equal(
        await shell(other, `diff -r plugins/cuda ${cuda} | grep -v '^Only in ${cuda}: '`),
        '',
        'patch(1) takes the diff',
      );

      t.match(
        (await cudapool(['patch', 'rollback', '--criu-src', dir, '--dry-run'])).stdout,
        /^cp .*before-context-pool/m,
      );
      t.equal((await verifyPatch(dir)).ok, true, 'a dry run rolled nothing back');
      t.equal((await command('rollback', dir)).exitCode, 0);
      t.equal(await differences(pristine, dir), '', 'identical to the release');
    });

    t.test('built in place: symbols, and rolled back to the byte', async (t) => {
      if (!canRun(t, version)) return;
      // What a built tree has, as the guide begins with one; building all of CRIU takes minutes.
      const dir = (await pristineTree(t, version, true)) ?? '';
      writeFileSync(join(dir, 'plugins', 'cuda', 'cuda_plugin.so'), 'built before');
      const before = join(tempDir(t), 'before');
      await exec('cp', ['-a', dir, before], { timeoutMs: 60_000 });

      await applyPatch(dir);
      t.equal((await command('verify', dir)).exitCode, 1, 'the plugin that was there is not the patched one');
      const { stdout, stderr } = await exec('make', ['-C', join(dir, 'plugins', 'cuda'), 'CC=cc', 'all'], {
        timeoutMs: 120_000,
        env: { ARCH: 'x86', MAKEFLAGS: undefined, MAKELEVEL: undefined, __nmk_dir: `${dir}/scripts/nmk/scripts/` },
      });
      t.notMatch(stdout + stderr, /warning:/);
      const { ok, checks } = await verifyPatch(dir);
      t.ok(ok, JSON.stringify(checks.filter(({ status }) => status === 'failed')));
      const shown = await shell(dir, 'nm plugins/cuda/cuda_plugin.so | grep -E "(warm|pool)"');
      for (const symbol of [
        't init_gpu_context_pool',
        't fini_gpu_context_pool',
        't prewarm_context_for_restore',
        'b g_warm_context',
        'b g_context_pool_enabled',
        'b g_warm_device',
      ]) {
        t.match(shown, new RegExp(` ${symbol}$`, 'm'));
      }
      const all = await shell(dir, 'nm plugins/cuda/cuda_plugin.so');
      for (const symbol of ['b g_context_lock', 'b g_context_initialized'])
        t.match(all, new RegExp(` ${symbol}$`, 'm'));
      t.notMatch(
        await shell(dir, 'nm -D --defined-only plugins/cuda/cuda_plugin.so'),
        /cudapool/,
        'nothing of ours is exported',
      );
      t.notMatch(
        await shell(dir, 'readelf -d plugins/cuda/cuda_plugin.so'),
        /cuda\.so|pthread/,
        'no libcuda, no threads',
      );
      t.match(await shell(dir, 'nm -u plugins/cuda/cuda_plugin.so'), /root_item/);
      t.notMatch(await shell(dir, 'nm -u plugins/cuda/cuda_plugin.so'), /pthread_create|\bcu[A-Z]/);

      // The guide's own way back, with the Makefile still patched.
      copyFileSync(join(dir, `${PLUGIN}.before-context-pool`), join(dir, PLUGIN));
      await exec('make', ['-C', join(dir, 'plugins', 'cuda'), 'CC=cc', 'clean', 'all'], {
        timeoutMs: 120_000,
        env: { ARCH: 'x86', MAKEFLAGS: undefined, MAKELEVEL: undefined, __nmk_dir: `${dir}/scripts/nmk/scripts/` },
      });
      await rollbackPatch(dir);
      t.equal(await differences(before, dir), '', 'identical, and the plugin that was there before is back');
    });

    t.test('what it refuses', async (t) => {
      const dir = await copy();
      const at = (path: string): string => join(dir, path);

      appendFileSync(at(PLUGIN), '\n/* a hand was here */\n');
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_UNRELEASED');
      await applyPatch(dir, { force: true }); // every edit finds its place
      await rollbackPatch(dir);
      t.match(readFileSync(at(PLUGIN), 'utf8'), 'a hand was here', 'and rollback gives back the edited file');

      const original = readFileSync(join(pristine, PLUGIN), 'utf8');
      writeFileSync(at(PLUGIN), original.replace('bool plugin_added_to_inventory = false;', 'static bool added;'));
      const misplaced = await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_PLACE', (tree) => applyPatch(tree, { force: true }));
      t.match(misplaced.lines, [/^globals\.c .*nothing matches/]);

      writeFileSync(
        at(PLUGIN),
        original.replace('#include <fcntl.h>', '#include <fcntl.h>\nstatic void *g_warm_context;'),
      );
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_FOREIGN');

      copyFileSync(join(pristine, PLUGIN), at(PLUGIN));
      writeFileSync(at(`${PLUGIN}.before-context-pool`), 'something else');
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_BACKUP');
      rmSync(at(`${PLUGIN}.before-context-pool`));
      mkdirSync(at('plugins/cuda/cudapool'));
      writeFileSync(at('plugins/cuda/cudapool/pool.c'), '');
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_FOREIGN');
      rmSync(at('plugins/cuda/cudapool'), { recursive: true });
      mkdirSync(at(`${PLUGIN}.cudapool-new`));
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_WRITE'); // the last step fails: all others are undone
      rmSync(at(`${PLUGIN}.cudapool-new`), { recursive: true });
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_NOT_APPLIED', rollbackPatch);
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_NOT_APPLIED', verifyPatch);

      // The guide's backup, made by hand before: it stays.
      copyFileSync(at(PLUGIN), at(`${PLUGIN}.before-context-pool`));
      await applyPatch(dir);
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_APPLIED');
      appendFileSync(at(PLUGIN), '\n');
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_EDITED', rollbackPatch);
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_EDITED');
      t.equal((await verifyPatch(dir)).ok, false);
      const { backup } = JSON.parse(readFileSync(at('plugins/cuda/.cudapool-patch.json'), 'utf8')).edited[1];
      renameSync(at(backup), at('hidden'));
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_BACKUP', (tree) => rollbackPatch(tree, { force: true }));
      renameSync(at('hidden'), at(backup));
      await rollbackPatch(dir, { force: true });
      t.ok(existsSync(at(`${PLUGIN}.before-context-pool`)));
      rmSync(at(`${PLUGIN}.before-context-pool`));
      t.equal(await differences(pristine, dir), '');

      writeFileSync(
        at('plugins/cuda/.cudapool-patch.json'),
        '{"schema": "cudapool-patch-manifest/1", "edited": [{"path": "../../etc/passwd"}]}',
      );
      await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_MANIFEST', rollbackPatch);
      rmSync(at('plugins/cuda/.cudapool-patch.json'));

      const makefile = readFileSync(at('Makefile.versions'), 'utf8');
      writeFileSync(at('Makefile.versions'), makefile.replace(/MAJOR\s*:= 4/, 'MAJOR := 3'));
      await refuses(t, dir, 'ERR_CUDAPOOL_CRIU_VERSION');
      rmSync(at('Makefile.versions'));
      await refuses(t, dir, 'ERR_CUDAPOOL_NOT_CRIU');
    });
  });
}

t.test('CRIU 4.2 is a release, and has the files of 4.2.1', async (t) => {
  const dir = await pristineTree(t, '4.2.1');
  if (dir === undefined) return;
  const [numbers, plugin] = [join(dir, 'Makefile.versions'), join(dir, PLUGIN)];
  writeFileSync(numbers, readFileSync(numbers, 'utf8').replace(/^(CRIU_VERSION_SUBLEVEL\s*:=).*$/m, '$1'));
  const original = readFileSync(plugin);
  appendFileSync(plugin, '\n');
  await refuses(t, dir, 'ERR_CUDAPOOL_PATCH_UNRELEASED');
  writeFileSync(plugin, original);
  await applyPatch(dir);
  const manifest = JSON.parse(readFileSync(join(dir, 'plugins/cuda/.cudapool-patch.json'), 'utf8'));
  t.equal(manifest.criu, '4.2');
  await rollbackPatch(dir);
});

t.test('usage', async (t) => {
  t.equal((await cudapool(['patch', 'apply'])).exitCode, 2, 'no tree');
  t.equal((await cudapool(['patch', 'apply', '--criu-src', '/nonexistent'])).exitCode, 2, 'no folder');
  const { exitCode, json } = await command('apply', tempDir(t));
  t.equal(exitCode, 1);
  t.match(json, { error: { code: 'ERR_CUDAPOOL_NOT_CRIU', hint: String } });
});
