// SPDX-License-Identifier: MIT
// The `cudapool` command: registers every subcommand, runs one, and turns what it throws into an exit code.
//
// How a command is added: a module exports `registerX(program: Command)`, which declares the
// command, its options and an action, and is listed in `commands` below. What the action needs beyond the
// declaration (execa, valibot, …) is imported inside of it, so that start-up stays fast. An action throws a
// CudapoolError, or sets process.exitCode, and prints data through output.ts. `--json` and
// `--dry-run`, where a command declares them, are honoured here before the action runs.
import { Command, CommanderError } from 'commander';
import { cancelAll, recordedCommands, setDryRun } from './adapters/exec.ts';
import { registerBench, registerReport } from './bench/index.ts';
import { registerBuild } from './build.ts';
import { registerBundle } from './bundle.ts';
import { registerCheck } from './check.ts';
import { registerCheckpoint } from './checkpoint.ts';
import { registerDemo } from './demo.ts';
import { asCudapoolError, EXIT, errorToJson, usageError } from './errors.ts';
import { addExamples } from './examples.ts';
import { registerImage } from './image.ts';
import { registerOptions } from './options.ts';
import { printError, printJson, say } from './output.ts';
import { registerPatch } from './patch/index.ts';
import { version } from './paths.ts';
import { registerPool } from './pool.ts';
import { registerRestore } from './restore.ts';
import { registerRun } from './run.ts';
import { registerSetup } from './setup/index.ts';
import { registerStatus } from './status.ts';
import { registerEvict, registerPrefetch } from './tiers.ts';

/** In the order in which they are listed. */
const commands: readonly ((program: Command) => void)[] = [
  registerCheck,
  registerSetup,
  registerPatch,
  registerBuild,
  registerRun,
  registerCheckpoint,
  registerRestore,
  registerPool,
  registerStatus,
  registerEvict,
  registerPrefetch,
  registerImage,
  registerOptions,
  registerDemo,
  registerBench,
  registerReport,
  registerBundle,
];

function createProgram(beforeAction: (options: Record<string, unknown>) => void): Command {
  const program = new Command('cudapool');
  program
    .exitOverride() // before .command(): subcommands inherit it
    .configureOutput({ writeErr: (text) => say(text.trimEnd()) })
    .configureHelp({ subcommandTerm: (sub) => sub.name() }) // what each takes is in its own --help
    .description('A pool of warm GPU contexts for fast restores of CUDA containers with CRIU and podman.')
    .version(version)
    .helpCommand(true)
    .enablePositionalOptions();
  program.hook('preAction', (_program, action) => beforeAction(action.opts()));
  for (const register of commands) register(program);
  addExamples(program);
  pointToHelp(program, 'cudapool');
  return program;
}

/** A usage error names the --help of the command that it is about. */
function pointToHelp(command: Command, path: string): void {
  command.showHelpAfterError(`hint: ${path} --help`);
  for (const sub of command.commands) pointToHelp(sub, `${path} ${sub.name()}`);
}

/** commander's words; where it showed the help instead, a command was missing. */
const usageMessage = ({ code, message }: CommanderError): string =>
  code === 'commander.help' ? 'name a command' : message.replace(/^error: /, '');

export async function main(argv: readonly string[]): Promise<number> {
  const own = argv.includes('--') ? argv.slice(0, argv.indexOf('--')) : argv;
  let json = own.includes('--json');
  let dry = false;
  const onSignal = (): void => cancelAll();
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  try {
    const program = createProgram((options) => {
      json = options.json === true;
      dry = options.dryRun === true;
      setDryRun(dry, json);
    });
    await program.parseAsync([...argv], { from: 'user' });
    if (dry && json) printJson({ schema: 'cudapool.dry-run/1', commands: recordedCommands() });
    return Number(process.exitCode ?? EXIT.OK);
  } catch (thrown) {
    if (thrown instanceof CommanderError) {
      if (thrown.exitCode === 0) return EXIT.OK;
      // commander has told people
      if (json) printJson({ error: errorToJson(usageError(usageMessage(thrown), 'see --help')) });
      return EXIT.USAGE;
    }
    const error = asCudapoolError(thrown);
    printError(error, json);
    return error.exit;
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}
