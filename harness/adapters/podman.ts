// SPDX-License-Identifier: MIT
// podman: its containers as data, and its checkpoint and restore with the figures that it prints.
import { dirname } from 'node:path';
import * as v from 'valibot';
import { CudapoolError, EXIT } from '../errors.ts';
import { type ExecOptions, type ExecResult, exec, lastLines } from './exec.ts';

/** Which podman: its global options (--root, --runtime, …) and what is added to its environment. */
export interface PodmanPlace {
  readonly globals: readonly string[];
  readonly env?: Readonly<Record<string, string | undefined>>;
}

export const usersPodman: PodmanPlace = { globals: [] };

/** podman's global options that take their value from the next argument, so that a subcommand can be found behind them. */
export const GLOBALS_WITH_VALUE: ReadonlySet<string> = new Set(
  (
    '--cdi-spec-dir --cgroup-manager --config --connection -c --conmon --context --default-mounts-file --events-backend ' +
    '--hooks-dir --identity --imagestore --log-level --module --namespace --network-cmd-path --network-config-dir --out ' +
    '--pull-option --retry --retry-delay --root --runroot --runtime --runtime-flag --ssh --storage-driver --storage-opt ' +
    '--tmpdir --url --volumepath'
  ).split(' '),
);

export interface Container {
  readonly id: string;
  readonly name: string;
  readonly status: string;
  readonly running: boolean;
  /** The root process, as the host sees it; 0 if it does not run. */
  readonly pid: number;
  readonly runtime: string;
  /** NAME=VALUE, as the container was created. */
  readonly env: readonly string[];
  readonly mounts: readonly { readonly source: string; readonly destination: string }[];
  /** Where CRIU's dump.log and restore.log lie. */
  readonly logs: string;
}

const Inspected = v.array(
  v.object({
    Id: v.string(),
    Name: v.string(),
    State: v.object({ Status: v.string(), Running: v.boolean(), Pid: v.number() }),
    OCIRuntime: v.optional(v.string(), ''),
    StaticDir: v.optional(v.string()),
    OCIConfigPath: v.optional(v.string()),
    Config: v.object({ Env: v.optional(v.nullable(v.array(v.string())), []) }),
    Mounts: v.optional(
      v.nullable(v.array(v.object({ Source: v.optional(v.string(), ''), Destination: v.optional(v.string(), '') }))),
      [],
    ),
  }),
);

export const podman = (
  place: PodmanPlace,
  args: readonly string[],
  options: Partial<ExecOptions> = {},
): Promise<ExecResult> =>
  exec('podman', [...place.globals, ...args], {
    timeoutMs: 60_000,
    ...options,
    env: { ...place.env, ...options.env },
  });

export async function containerNames(place: PodmanPlace): Promise<string[]> {
  const { stdout } = await podman(place, ['ps', '--all', '--format', '{{.Names}}'], { readOnly: true });
  return stdout.split('\n').filter((name) => name !== '');
}

const NAMES_MS = 2000;

/** Names by id, for people: none where podman is not there, or does not answer at once. */
export async function namesById(place: PodmanPlace): Promise<ReadonlyMap<string, string>> {
  const args = ['ps', '--all', '--no-trunc', '--format', '{{.ID}} {{.Names}}'];
  const ran = await podman(place, args, { readOnly: true, reject: false, timeoutMs: NAMES_MS }).catch(
    (thrown: CudapoolError) => {
      if (thrown.exit === EXIT.INTERRUPTED) throw thrown;
      return undefined;
    },
  );
  const lines = ran?.exitCode === 0 ? ran.stdout.split('\n') : [];
  return new Map(lines.map((line) => line.split(' ', 2) as [string, string]));
}

/** How many letters must change to make one name of the other. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

/** The names that somebody who typed `wanted` may have meant, the likeliest first. */
export function nearNames(wanted: string, names: readonly string[], most = 3): string[] {
  return names
    .map((name) => ({ name, far: name.includes(wanted) || wanted.includes(name) ? 1 : distance(wanted, name) }))
    .filter(({ far }) => far <= Math.max(2, wanted.length / 3))
    .sort((a, b) => a.far - b.far)
    .slice(0, most)
    .map(({ name }) => name);
}

export async function inspectContainer(place: PodmanPlace, wanted: string): Promise<Container> {
  const ran = await podman(place, ['container', 'inspect', wanted], { readOnly: true, reject: false });
  if (ran.exitCode !== 0) {
    if (!/no such (container|object)|no container with name/i.test(ran.stderr)) {
      throw new CudapoolError('ERR_CUDAPOOL_PODMAN', `podman cannot inspect ${wanted}`, {
        lines: lastLines(ran.stderr),
        hint: `to see it by itself: ${ran.command}`,
      });
    }
    const names = await containerNames(place);
    const near = nearNames(wanted, names);
    const listed = near.length > 0 ? near : names.slice(0, 10);
    throw new CudapoolError('ERR_CUDAPOOL_NO_CONTAINER', `there is no container named ${wanted}`, {
      hint:
        listed.length === 0
          ? 'podman has no container at all; one of another user, or with another --root, is reached by --podman-arg'
          : near.length > 0
            ? `did you mean ${near.join(' or ')}?`
            : `there are: ${listed.join(', ')}${names.length > listed.length ? ', …' : ''}`,
      details: { near, names: listed },
    });
  }
  const found = v.safeParse(v.pipe(v.string(), v.parseJson(), Inspected), ran.stdout);
  const first = found.success ? found.output[0] : undefined;
  const logs = first?.StaticDir ?? (first?.OCIConfigPath === undefined ? undefined : dirname(first.OCIConfigPath));
  if (first === undefined || logs === undefined) {
    throw new CudapoolError('ERR_CUDAPOOL_PODMAN', `podman describes ${wanted} in a way that cudapool does not know`, {
      hint: `compare with the output of: ${ran.command}`,
    });
  }
  return {
    id: first.Id,
    name: first.Name,
    status: first.State.Status,
    running: first.State.Running,
    pid: first.State.Pid,
    runtime: first.OCIRuntime,
    env: first.Config.Env ?? [],
    mounts: (first.Mounts ?? []).map((m) => ({ source: m.Source, destination: m.Destination })),
    logs,
  };
}

/** An image that `podman container checkpoint --create-image` has made; false also where there is no such image. */
export async function isCheckpointImage(place: PodmanPlace, name: string): Promise<boolean> {
  const format = '{{index .Annotations "io.podman.annotations.checkpoint.name"}}';
  const ran = await podman(place, ['image', 'inspect', '--format', format, name], { readOnly: true, reject: false });
  return ran.exitCode === 0 && ran.stdout.trim() !== '';
}

/** podman's own figures, in its units (microseconds) and made comparable (milliseconds). */
export interface PodmanStats {
  readonly podman_ms: number;
  readonly runtime_ms: number;
  /** CRIU's figures, in microseconds; its restore_time stops before the CUDA hook. */
  readonly criu_us: Readonly<Record<string, number>>;
}

const Printed = v.object({
  podman_checkpoint_duration: v.optional(v.number()),
  podman_restore_duration: v.optional(v.number()),
  container_statistics: v.array(
    v.object({
      Id: v.string(),
      runtime_checkpoint_duration: v.optional(v.number()),
      runtime_restore_duration: v.optional(v.number()),
      criu_statistics: v.optional(v.nullable(v.record(v.string(), v.number())), {}),
    }),
  ),
});

/** What `--print-stats` printed; undefined if it is not that. */
export function parseStats(stdout: string): { id: string; stats: PodmanStats } | undefined {
  const start = stdout.indexOf('{');
  if (start < 0) return undefined;
  let parsed: unknown;
  try {
    parsed = JSON.parse(stdout.slice(start));
  } catch {
    return undefined;
  }
  const printed = v.safeParse(Printed, parsed);
  const one = printed.success ? printed.output.container_statistics[0] : undefined;
  if (!printed.success || one === undefined) return undefined;
  const { podman_checkpoint_duration: checkpoint, podman_restore_duration: restore } = printed.output;
  return {
    id: one.Id,
    stats: {
      podman_ms: (checkpoint ?? restore ?? 0) / 1000,
      runtime_ms: (one.runtime_checkpoint_duration ?? one.runtime_restore_duration ?? 0) / 1000,
      criu_us: one.criu_statistics ?? {},
    },
  };
}
