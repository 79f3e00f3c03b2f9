// SPDX-License-Identifier: MIT
// workloads/call_rate: how long a driver call takes that submits work.
import { join } from 'node:path';
import * as v from 'valibot';
import { CudapoolError } from '../errors.ts';
import { built } from '../paths.ts';
import { exec } from './exec.ts';

const Printed = v.pipe(
  v.string(),
  v.parseJson(),
  v.object({ call: v.string(), threads: v.number(), ns: v.pipe(v.number(), v.finite(), v.minValue(0)) }),
);

/** Nanoseconds a call: the median of its passes, of `ms` milliseconds in all. */
export async function callRate(
  call: 'launch' | 'record',
  threads: number,
  ms: number,
  env: Readonly<Record<string, string | undefined>>,
): Promise<number> {
  const program = join(built.workloads, 'call_rate');
  const { stdout } = await exec(program, [call, String(threads), String(ms)], {
    timeoutMs: ms + 60_000,
    env: { ...env },
  });
  const printed = v.safeParse(Printed, stdout);
  if (printed.success) return printed.output.ns;
  throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', `call_rate could not measure: ${stdout.trim().slice(0, 300)}`);
}
