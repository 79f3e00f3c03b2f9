// SPDX-License-Identifier: MIT
// Frameworks with work in flight: parked, dumped, killed and restored twice; every step afterwards as it was before.
import { setTimeout as sleep } from 'node:timers/promises';
import { buildCudartProgram } from '../../adapters/nvcc.ts';
import { inspectContainer } from '../../adapters/podman.ts';
import { hasModule } from '../../adapters/python.ts';
import type { Answer } from '../../container/ask.ts';
import { checkpointDir } from '../../container/images.ts';
import { type Lab, makeLab, type Workload, type WorkloadOptions } from '../../container/lab.ts';
import type { Program } from '../../container/programs.ts';
import { type ParkRecord, recordsIn } from '../../container/records.ts';
import { CudapoolError, usageError } from '../../errors.ts';
import { memoryStorage, phaseNotes } from '../cycle.ts';
import type { Experiment, Outcome } from '../experiment.ts';
import type { Suite, SuiteOptions } from '../suite.ts';

interface Framework {
  readonly name: string;
  readonly label: string;
  /** Python modules that it needs. */
  readonly modules: readonly string[];
  /** Devices that it uses; default 1. Where there are fewer it is no part of the suite. */
  readonly devices?: number;
  readonly workload: WorkloadOptions | (() => Promise<WorkloadOptions | undefined>);
}

const python = (
  script: string,
  args: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): WorkloadOptions => ({
  program: { kind: 'python', script: `frameworks/${script}`, args } satisfies Program,
  env,
});
const torch = (mode: string, env: Readonly<Record<string, string>> = {}): WorkloadOptions =>
  python('torch_program.py', ['--mode', mode], env);
const allocator = (conf: string) => ({ PYTORCH_CUDA_ALLOC_CONF: conf });

const GPU: readonly Framework[] = [
  { name: 'torch-eager', label: 'PyTorch, eager (cuBLAS)', modules: ['torch'], workload: torch('eager') },
  { name: 'torch-conv', label: 'PyTorch, convolutions (cuDNN)', modules: ['torch'], workload: torch('conv') },
  { name: 'torch-graphs', label: 'PyTorch, CUDA graphs', modules: ['torch'], workload: torch('graphs') },
  { name: 'torch-compile', label: 'PyTorch, torch.compile', modules: ['torch', 'triton'], workload: torch('compile') },
  {
    name: 'torch-expandable',
    label: 'PyTorch, expandable_segments',
    modules: ['torch'],
    workload: torch('eager', allocator('expandable_segments:True')),
  },
  {
    name: 'torch-async',
    label: 'PyTorch, cudaMallocAsync',
    modules: ['torch'],
    workload: torch('eager', allocator('backend:cudaMallocAsync')),
  },
  { name: 'cupy', label: 'CuPy', modules: ['cupy'], workload: python('cupy_program.py') },
  {
    name: 'jax',
    label: 'JAX, preallocating a tenth of the GPU',
    modules: ['jax'],
    workload: python('jax_program.py', [], { XLA_PYTHON_CLIENT_MEM_FRACTION: '0.1' }),
  },
  { name: 'triton', label: 'Triton', modules: ['torch', 'triton'], workload: python('triton_program.py') },
  {
    name: 'cudart-static',
    label: 'CUDA C, static runtime',
    modules: [],
    workload: async () => {
      const file = await buildCudartProgram();
      return file === undefined ? undefined : { program: { kind: 'binary', file } };
    },
  },
  {
    name: 'two-gpus',
    label: 'CUDA C, driver API, two GPUs',
    modules: [],
    devices: 2,
    workload: { memoryMib: 8192, pieces: 16, devices: 2, busy: true, replace: true },
  },
  {
    name: 'two-gpus-copies',
    label: 'the same, by copies with the other GPU current',
    modules: [],
    devices: 2,
    workload: { memoryMib: 512, pieces: 16, devices: 2, by: 'copy', replace: true },
  },
];

/** Without a GPU: the ways in which gpu_app allocates. */
const SOFTWARE: readonly Framework[] = (
  [
    ['alloc', 'cuMemAlloc'],
    ['map', 'its own cuMemCreate'],
    ['ordered', 'cuMemAllocAsync'],
    ['managed', 'managed memory'],
  ] as const
).map(([kind, label]) => ({
  name: kind,
  label,
  modules: [],
  workload: { memoryMib: 32, pieces: 4, kind, busy: true, replace: true },
}));

const READY_MS = 120_000;
const ACTION_MS = 180_000;
const CYCLES = 2;
const STORAGE = { gpu: 24 * 2 ** 30, softcuda: 2 ** 30 };
/** Between the answer and the checkpoint: work is in flight, and nobody waits for it. */
const FLIGHT_MS = 200;

/** The same content and the same results as before, and more steps done. */
function checkSame(name: string, answers: readonly Answer[], before: readonly Answer[]): void {
  for (const [i, { checksum, tokens, steps }] of answers.entries()) {
    const earlier = before[i];
    if (checksum === earlier?.checksum && tokens === earlier?.tokens && (steps ?? 1) > (earlier?.steps ?? 0)) continue;
    throw new CudapoolError(
      'ERR_CUDAPOOL_WRONG_ANSWER',
      `${name}: ${checksum} after ${steps} steps; before the checkpoint ${earlier?.checksum} after ${earlier?.steps}`,
      { hint: 'the restored process computes something else: this must never happen' },
    );
  }
}

async function cycles(lab: Lab, name: string, workload: Workload): Promise<Outcome> {
  let { answers: before } = await workload.ask({ timeoutMs: ACTION_MS });
  const values: Record<string, number> = {};
  let parked: ParkRecord | undefined;
  let restored: ParkRecord | undefined;
  for (let cycle = 1; cycle <= CYCLES; cycle++) {
    await sleep(FLIGHT_MS);
    const dump = await lab.checkpoint(workload, { pool: true, timeoutMs: ACTION_MS });
    const dir = checkpointDir(await inspectContainer(lab.podman, workload.name));
    parked = recordsIn(dir, 'checkpoint')[0];
    const restore = await lab.restore(workload, { pool: true, timeoutMs: ACTION_MS });
    restored = recordsIn(dir, 'restore')[0];
    const { answers } = await workload.ask({ timeoutMs: ACTION_MS });
    checkSame(name, answers, before);
    before = answers;
    values[`checkpoint_${cycle}_ms`] = dump.wall_ms;
    values[`restore_${cycle}_ms`] = restore.wall_ms;
  }
  if (parked === undefined || restored === undefined) {
    throw new CudapoolError('ERR_CUDAPOOL_WRONG_PATH', `${name}: the pool kept no record of it`);
  }
  values.parked_mib = parked.parked_bytes / 2 ** 20;
  for (const [kind, bytes] of Object.entries(parked.left_bytes)) values[`left_${kind}_mib`] = bytes / 2 ** 20;
  return {
    verified: true,
    values,
    notes: { path: restored.path, why: parked.why, steps: before[0]?.steps ?? 0, ...phaseNotes(restored) },
  };
}

const LEFT = ['small', 'ordered', 'managed', 'array', 'shared', 'refused'] as const;

function experiment({ bed, only }: SuiteOptions): Experiment {
  const present = bed.facts.devices?.length ?? 1;
  const known = (bed.driver === 'gpu' ? GPU : SOFTWARE).filter(({ devices = 1 }) => devices <= present);
  for (const name of only ?? []) {
    if (known.some((framework) => framework.name === name)) continue;
    throw usageError(`there is no program '${name}' here`, `choose from ${known.map((each) => each.name).join(', ')}`);
  }
  const all = only === undefined ? known : known.filter(({ name }) => only.includes(name));
  const storage = memoryStorage(STORAGE[bed.driver]);
  let lab: Lab | undefined;
  return {
    suite: 'frameworks',
    title: `Programs with work in flight, checkpointed and restored ${CYCLES} times: identical afterwards, and what was parked.`,
    setup: { cycles: CYCLES, storage: storage ?? 'disk' },
    variants: all.map(({ name, label }) => ({ name, label })),
    unlike: true,
    metrics: [
      { name: 'parked_mib', unit: 'MiB', label: 'GPU memory parked' },
      ...LEFT.map((kind) => ({ name: `left_${kind}_mib`, unit: 'MiB', label: `left to the driver: ${kind}` })),
      ...Array.from({ length: CYCLES }, (_, i) => [
        { name: `checkpoint_${i + 1}_ms`, unit: 'ms', label: `checkpoint ${i + 1}` },
        { name: `restore_${i + 1}_ms`, unit: 'ms', label: `restore ${i + 1}` },
      ]).flat(),
    ],
    targets: [{ kind: 'fact', what: 'programs that were not identical', fact: 'not_identical', max: 0 }],
    failuresInARow: all.length, // each is another program
    run: async (variant) => {
      const framework = all.find(({ name }) => name === variant) as Framework;
      for (const name of framework.modules) {
        if (!(await hasModule(name))) throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', `python3 has no ${name}`);
      }
      const { workload: what } = framework;
      const options = typeof what === 'function' ? await what() : what;
      if (options === undefined) throw new CudapoolError('ERR_CUDAPOOL_WORKLOAD', 'there is no nvcc to build it with');
      if (lab === undefined) {
        lab = await makeLab({ driver: bed.driver === 'gpu' ? 'gpu' : 'software', criu: bed.criuTree, storage });
        await lab.startPool();
      }
      const workload = await lab.start({ ...options, shim: true, readyMs: READY_MS });
      try {
        return await cycles(lab, framework.label, workload);
      } finally {
        await lab.remove(workload);
      }
    },
    facts: (seen) => ({ not_identical: seen.runs.filter((run) => !run.verified).length }),
    finish: async () => {
      const left = lab;
      lab = undefined;
      await left?.dispose();
    },
  };
}

export const frameworksSuite: Suite = {
  name: 'frameworks',
  summary: 'PyTorch in its ways, CuPy, JAX, Triton, CUDA C: identical across two checkpoints, and what is parked',
  runs: 1,
  warmup: 0,
  seconds: 160,
  experiments: (options) => [experiment(options)],
};
