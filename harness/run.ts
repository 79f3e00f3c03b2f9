// SPDX-License-Identifier: MIT
// `cudapool run -- COMMAND`: an application, or a container, with the shim.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants } from 'node:os';
import { basename } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import { isDryRun, quote, recordDry, which } from './adapters/exec.ts';
import { GLOBALS_WITH_VALUE } from './adapters/podman.ts';
import { wholeNumber } from './arguments.ts';
import { installShim, podmanArguments, shimDir, shimPath } from './container/shim.ts';
import { CudapoolError, unfitError, usageError } from './errors.ts';
import { warn } from './output.ts';
import { built } from './paths.ts';

interface RunFlags {
  warm?: string;
  warmDevice?: number;
  park?: boolean;
  parkMinKb?: number;
  shim: string;
  shimDir?: string;
  softwareDriver?: string;
  dryRun?: boolean;
}

/** Where `run` or `create` stands in a podman command line; -1: it is another subcommand. */
export function podmanSubcommand(argv: readonly string[]): number {
  for (let i = 1; i < argv.length; i++) {
    const arg = argv[i] ?? '';
    if (arg.startsWith('-')) {
      if (GLOBALS_WITH_VALUE.has(arg)) i++;
      continue;
    }
    if (arg === 'container') continue;
    return arg === 'run' || arg === 'create' ? i : -1;
  }
  return -1;
}

/** True if the user's own options set a variable that ours would set as well. */
export function setsVariable(argv: readonly string[], name: string): boolean {
  return argv.some((arg, i) => {
    const value = arg === '-e' || arg === '--env' ? (argv[i + 1] ?? '') : arg.replace(/^(--env=|-e)/, '');
    return value !== arg || arg === '-e' || arg === '--env' ? value.startsWith(`${name}=`) : false;
  });
}

/** The shim's options that are set here: a container would not inherit them. The command's own options come first. */
async function inheritedOptions(argv: readonly string[]): Promise<Record<string, string>> {
  const { poolOptions } = await import('./adapters/cudapoold.ts');
  const shims = (await poolOptions()).filter(({ readers }) => readers.includes('shim'));
  const set = shims.flatMap(({ environment }): [string, string][] => {
    const value = process.env[environment];
    return value === undefined || setsVariable(argv, environment) ? [] : [[environment, value]];
  });
  return Object.fromEntries(set);
}

/** The command and the environment that is added to it. */
async function prepare(
  argv: readonly string[],
  flags: RunFlags,
): Promise<{ argv: string[]; env: Record<string, string> }> {
  const shimEnv: Record<string, string> = {
    ...(flags.park === false && { CUDAPOOL_PARK: '0' }),
    ...(flags.parkMinKb !== undefined && { CUDAPOOL_PARK_MIN_KB: String(flags.parkMinKb) }),
    ...(flags.warm !== undefined && { CUDAPOOL_WARM: flags.warm }),
    ...(flags.warmDevice !== undefined && { CUDAPOOL_WARM_DEVICE: String(flags.warmDevice) }),
  };
  if (!existsSync(flags.shim)) throw unfitError('ERR_CUDAPOOL_SHIM', `${flags.shim} is not there`, 'cudapool setup');
  const program = argv[0] ?? '';
  if (basename(program) !== 'podman') {
    const preload = process.env.LD_PRELOAD ?? '';
    const libraries = process.env.LD_LIBRARY_PATH ?? '';
    const after = (rest: string): string => (rest === '' ? '' : `:${rest}`);
    return {
      argv: [...argv],
      env: {
        ...shimEnv,
        LD_PRELOAD: `${flags.shim}${after(preload)}`,
        ...(flags.softwareDriver !== undefined && {
          LD_LIBRARY_PATH: `${built.softcudaLib}${after(libraries)}`,
          SOFTCUDA_DIR: flags.softwareDriver,
        }),
      },
    };
  }
  const at = podmanSubcommand(argv);
  if (at < 0) {
    throw usageError(
      `the shim is for applications: 'podman ${argv.slice(1).find((arg) => !arg.startsWith('-')) ?? ''}' starts none`,
      'a container gets it when it is created: cudapool run -- podman run …; restores are made by cudapool restore',
    );
  }
  const dir = flags.shimDir ?? shimDir();
  const library = isDryRun() ? shimPath(dir, flags.shim) : installShim(dir, flags.shim);
  const added = podmanArguments({
    shim: { library, dir, env: { ...(await inheritedOptions(argv.slice(at))), ...shimEnv } },
    ...(flags.softwareDriver !== undefined && { software: { devices: flags.softwareDriver } }),
  });
  if (setsVariable(argv.slice(at), 'LD_PRELOAD')) {
    warn('the command sets LD_PRELOAD itself, and that is the one that counts', `put ${library} into it`);
  }
  return { argv: [...argv.slice(0, at + 1), ...added, ...argv.slice(at + 1)], env: {} };
}

/** On a terminal, the kernel gives the others to the child as well: once is enough. */
const FORWARDED: readonly NodeJS.Signals[] = process.stdin.isTTY
  ? ['SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2']
  : ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGCONT'];

/** Runs it in the foreground with this terminal; its exit code, or 128 and its signal. */
function foreground(argv: readonly string[], env: Readonly<Record<string, string>>): Promise<number> {
  const [program = '', ...args] = argv;
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: 'inherit', env: { ...process.env, ...env } });
    const forwards = FORWARDED.map((signal) => {
      const forward = (): void => {
        child.kill(signal);
      };
      process.on(signal, forward);
      return [signal, forward] as const;
    });
    const end = (): void => {
      for (const [signal, forward] of forwards) process.off(signal, forward);
    };
    child.once('error', (cause: NodeJS.ErrnoException) => {
      end();
      const missing = cause.code === 'ENOENT' || which(program) === undefined;
      reject(
        new CudapoolError(
          'ERR_CUDAPOOL_COMMAND',
          `${program} cannot be run: ${missing ? 'no such program in PATH' : cause.message}`,
          { cause, hint: missing ? 'check how it is spelt, or give its path' : 'check its permissions' },
        ),
      );
    });
    child.once('exit', (code, signal) => {
      end();
      resolve(signal === null ? (code ?? 1) : 128 + constants.signals[signal]);
    });
  });
}

/** What CUDAPOOL_WARM takes; the shim itself would only say no to its log. */
function warmWhen(text: string): string {
  if (/^(restore|never|start:[^,\s]+(,[^,\s]+)*)$/.test(text) && text.length <= 255) return text;
  throw new InvalidArgumentError(
    "It must be 'restore', 'never', or 'start:' and program names, as start:python3,worker.",
  );
}

export function registerRun(program: Command): void {
  program
    .command('run')
    .summary('run an application with the shim')
    .description(
      'Runs COMMAND with the shim, and ends with its exit code. The shim hands back CUDA contexts that were warmed in the background, and makes ' +
        'GPU memory such that a checkpoint can park it.\n\n' +
        "Where COMMAND is 'podman run' or 'podman create', the container gets the shim: its folder is mounted read-only, and " +
        'LD_PRELOAD set, by options put behind the subcommand. The folder keeps every version of the library, as a checkpoint ' +
        'needs the one that it was made with.',
    )
    .argument('<command...>', "behind '--'")
    .option(
      '--warm <when>',
      "CUDAPOOL_WARM: 'restore' (default), 'never', or 'start:' and program names, separated by commas",
      warmWhen,
    )
    .option('--warm-device <n>', 'CUDAPOOL_WARM_DEVICE: the device whose context is warmed', wholeNumber(0, 63))
    .option('--no-park', 'CUDAPOOL_PARK=0: its GPU memory goes through the checkpoint as without cudapool')
    .option(
      '--park-min-kb <n>',
      'CUDAPOOL_PARK_MIN_KB: smaller allocations are left to the driver',
      wholeNumber(64, 1 << 20),
    )
    .option('--shim <file>', 'the library', built.shim)
    .option('--shim-dir <dir>', `folder that is mounted into containers (default: ${shimDir()})`)
    .option('--software-driver <dir>', "run on cudapool's software driver, with its devices' state in this folder")
    .option('--dry-run', 'print the exact command and run nothing')
    .passThroughOptions()
    .action(async (command: string[], flags: RunFlags) => {
      const { argv, env } = await prepare(command, flags);
      if (isDryRun()) {
        const vars = Object.entries(env).map(([name, value]) => `${name}=${quote([value])}`);
        recordDry([...vars, quote(argv)].join(' '));
        return;
      }
      process.exitCode = await foreground(argv, env);
    });
}
