// SPDX-License-Identifier: MIT
// test/shim/call_cost: what the shim adds to a driver call that needs no action, and to a process that never uses CUDA.
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';
import { CudapoolError } from '../errors.ts';
import { built, inRoot } from '../paths.ts';
import { exec } from './exec.ts';
import { make } from './make.ts';

const number = v.pipe(v.number(), v.finite());
const time = v.pipe(number, v.minValue(0));
const Printed = v.object({
  calls: v.pipe(
    v.array(
      v.object({
        function: v.string(),
        threads: number,
        without_ns: time,
        /** Without the shim, through a function of the program's own that does about what the shim's does. */
        control_ns: time,
        with_ns: time,
        /** Without the shim once more. */
        again_ns: time,
      }),
    ),
    v.minLength(1),
  ),
  start_up: v.object({ without_ms: time, with_ms: time }),
});
export type CallCost = v.InferOutput<typeof Printed>;

const OUT = inRoot('build', 'c', 'shim');
export const callCostPrograms: readonly string[] = ['call_cost', 'nothing'].map((name) => join(OUT, name));
const RUN_MS = 120_000;

/** Builds them, where there is something to build from; a bundle brings them along. */
export async function buildCallCost(): Promise<void> {
  if (!existsSync(inRoot('test', 'shim', 'Makefile'))) return;
  mkdirSync(OUT, { recursive: true });
  await make({ dir: inRoot('test', 'shim'), targets: callCostPrograms, vars: { OUT }, timeoutMs: RUN_MS });
}

/** Runs it once, about ten seconds; it measures without and with the shim in turn by itself. */
export async function callCost(env: Readonly<Record<string, string | undefined>>): Promise<CallCost> {
  const [program, nothing] = callCostPrograms as [string, string];
  const { stdout } = await exec(program, [built.shim, nothing], {
    timeoutMs: RUN_MS,
    env: { ...env, LD_PRELOAD: undefined },
  });
  let document: unknown;
  try {
    document = JSON.parse(stdout);
  } catch {
    document = undefined;
  }
  const printed = v.safeParse(Printed, document);
  if (printed.success) return printed.output;
  throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', `call_cost could not measure: ${stdout.trim().slice(0, 300)}`, {
    hint: '`cudapool check` says what is wrong with the driver',
  });
}
