// SPDX-License-Identifier: MIT
// What a build leaves in the user's tree is known and can be taken away again, and nothing else is.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { recordBuild, removeBuild } from '../../harness/build-record.ts';
import { tempDir } from '../support/index.ts';

const list = (dir: string): string[] => (readdirSync(dir, { recursive: true }) as string[]).sort();

t.test('a build, another one, one that fails; then none of it', async (t) => {
  const tree = tempDir(t);
  mkdirSync(join(tree, 'src'));
  writeFileSync(join(tree, 'src', 'a.c'), 'source');
  const before = list(tree);
  await recordBuild(tree, async () => {
    mkdirSync(join(tree, 'out', 'deep'), { recursive: true });
    for (const name of ['src/a.o', 'out/deep/b.o']) writeFileSync(join(tree, name), '');
  });
  await recordBuild(tree, async () => writeFileSync(join(tree, 'out', 'c.o'), ''));
  const failing = recordBuild(tree, async () => {
    writeFileSync(join(tree, 'out', 'partial.o'), '');
    throw new Error('make failed');
  });
  await t.rejects(failing, /make failed/);
  t.equal(removeBuild(tree), 4, 'four files');
  t.same(list(tree), before);
  t.equal(removeBuild(tree), 0, 'again: nothing to do');
});

t.test("the user's own file in a folder of the build stays", async (t) => {
  const tree = tempDir(t);
  await recordBuild(tree, async () => {
    mkdirSync(join(tree, 'out'));
    writeFileSync(join(tree, 'out', 'a.o'), '');
  });
  writeFileSync(join(tree, 'out', 'notes'), 'mine');
  removeBuild(tree);
  t.same(list(tree), ['out', 'out/notes']);
});

const damage: readonly { name: string; record: string }[] = [
  { name: 'no JSON', record: '{' },
  { name: 'another schema', record: '{"schema":"other/1","created":[]}' },
  { name: 'no list', record: '{"schema":"cudapool.build-record/1","created":"x"}' },
  { name: 'a path that leads out', record: '{"schema":"cudapool.build-record/1","created":["../victim"]}' },
  { name: 'an absolute path', record: '{"schema":"cudapool.build-record/1","created":["/tmp/victim"]}' },
  { name: 'the tree itself', record: '{"schema":"cudapool.build-record/1","created":["."]}' },
];
for (const { name, record } of damage) {
  t.test(`a damaged record removes nothing: ${name}`, (t) => {
    const above = tempDir(t);
    const tree = join(above, 'tree');
    mkdirSync(tree);
    writeFileSync(join(above, 'victim'), 'here');
    writeFileSync(join(tree, '.cudapool-build.json'), record);
    t.throws(() => removeBuild(tree), { code: 'ERR_CUDAPOOL_BUILD_RECORD', hint: /mrproper/ });
    t.equal(readFileSync(join(above, 'victim'), 'utf8'), 'here');
    t.ok(existsSync(tree));
    t.end();
  });
}
