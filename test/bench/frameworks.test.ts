// SPDX-License-Identifier: MIT
// The programs in Python find what they share, before they import a framework that is not here.
import { readdirSync } from 'node:fs';
import t from 'tap';
import { look } from '../../harness/adapters/exec.ts';
import { inRoot } from '../support/index.ts';

t.test('each says what it is, from any folder', async (t) => {
  const folder = inRoot('workloads', 'frameworks');
  const programs = readdirSync(folder).filter((name) => name.endsWith('_program.py'));
  t.equal(programs.length, 4);
  for (const name of programs) {
    const ran = await look('python3', ['-B', `${folder}/${name}`, '--help'], { cwd: '/' });
    t.match(ran.stdout, /^usage: .*--dir DIR/s, name);
    t.match(await look('python3', ['-B', `${folder}/${name}`], { reject: false }), { exitCode: 2, stderr: /--dir/ });
  }
});
