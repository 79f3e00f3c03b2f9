// SPDX-License-Identifier: MIT
// workloads/first_call.py prints what the suite expects; with a stand-in for PyTorch, which needs a GPU.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { look, which } from '../../harness/adapters/exec.ts';
import { hasModule, runForJson } from '../../harness/adapters/python.ts';
import { inRoot, tempDir } from '../support/index.ts';

const STAND_IN = `
import time
time.sleep(0.02)
__version__ = "0"
float32 = None
class Tensor:
    def __init__(self, n): self.n = n
    def sum(self): return self
    def item(self): return float(self.n)
class cuda:
    cold = True
    @staticmethod
    def synchronize(): pass
    @staticmethod
    def get_device_name(i): return "stand-in"
def empty(n, device, dtype=None):
    if cuda.cold: time.sleep(0.5)
    cuda.cold = False
    return Tensor(n)
def ones(n, device): return Tensor(n)
`;

t.test('first_call.py', async (t) => {
  const works = which('python3') !== undefined && (await look('python3', ['-c', ''], { reject: false })).exitCode === 0;
  if (!works) {
    t.pass('there is no python3', { skip: true });
    return;
  }
  const dir = tempDir(t);
  writeFileSync(join(dir, 'torch.py'), STAND_IN);
  const program = inRoot('workloads', 'first_call.py');
  const printed = (await runForJson(program, { PYTHONPATH: dir }, 20_000)) as Record<string, number>;
  t.equal(printed.sum, printed.count);
  t.ok((printed.import_ms ?? 0) >= 20, 'the import is timed by itself');
  t.ok(
    (printed.first_call_ms ?? 0) >= 500 && (printed.second_call_ms ?? 999) < 500,
    'the first call is the one that waits',
  );
  t.equal(await hasModule('json'), true);
  t.equal(await hasModule('no_such_module_at_all'), false);
  await t.rejects(runForJson('-', {}, 5000), { code: 'ERR_CUDAPOOL_WORKLOAD' }, 'a program that prints no JSON');
});
