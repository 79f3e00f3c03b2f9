// SPDX-License-Identifier: MIT
// The driver asked through ffi-rs: facts, times, and a library that is missing, fails or crashes.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { exec } from '../../harness/adapters/exec.ts';
import { driverFacts, driverTimes } from '../../harness/driver/index.ts';
import { softCuda, tempDir } from '../support/index.ts';

t.test('the software driver', async (t) => {
  const { env } = softCuda(t, { SOFTCUDA_DEVICES: '2' });
  const facts = await driverFacts({ env });
  t.match(facts, { problem: undefined, version: Number });
  t.equal(facts.devices?.length, 2);
  const [first, second] = facts.devices ?? [];
  t.match(first?.uuid, /^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
  t.not(first?.uuid, second?.uuid);
  t.ok(BigInt(first?.memory_bytes ?? 0) > 0xffff_ffffn, 'more than 32 bits');
  const times = await driverTimes({ env });
  for (const name of ['cuinit_ms', 'context_ms', 'retain_again_ms'] as const) t.ok(times[name] > 0, name);
});

t.test('a library that is not there', async (t) => {
  const facts = await driverFacts({ library: '/nonexistent/libcuda.so.1' });
  t.match(facts.problem, /cannot be loaded.*No such file/);
});

async function library(t: import('tap').Test, body: string): Promise<string> {
  const dir = tempDir(t);
  writeFileSync(join(dir, 'fake.c'), body);
  await exec('cc', ['-shared', '-fPIC', '-o', join(dir, 'fake.so'), join(dir, 'fake.c')], { timeoutMs: 20_000 });
  return join(dir, 'fake.so');
}

t.test('a driver that refuses', async (t) => {
  const fake = await library(
    t,
    'int cuDriverGetVersion(int *v) { *v = 12080; return 0; } int cuInit(unsigned f) { return 802; }',
  );
  t.match(await driverFacts({ library: fake }), { version: 12080, problem: 'cuInit failed with error 802' });
});

t.test('a driver that crashes takes only the child along', async (t) => {
  const fake = await library(t, 'int cuDriverGetVersion(int *v) { return *(volatile int *)8; }');
  await t.rejects(driverFacts({ library: fake }), { code: 'ERR_CUDAPOOL_COMMAND', message: /SIGSEGV/ });
});
