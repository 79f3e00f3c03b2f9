// SPDX-License-Identifier: MIT
// Which CRIU is used: a built source tree, with its binary and its CUDA plugin.
import { existsSync, readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { isExecutable } from '../adapters/exec.ts';
import { unfitError } from '../errors.ts';
import { CRIU_DEFAULT, criuTree, inRoot } from '../paths.ts';

export interface CriuChoice {
  readonly tree: string;
  readonly binary: string;
  /** CRIU_LIBS_DIR. */
  readonly plugins: string;
}

const at = (tree: string): CriuChoice => ({
  tree,
  binary: join(tree, 'criu', 'criu'),
  plugins: join(tree, 'plugins', 'cuda'),
});

/** `cudapool build` keeps the plugin as upstream has it in this folder of the tree. */
const STOCK = 'stock';

/** The same CRIU with upstream's plugin. */
export function withStockPlugin(choice: CriuChoice): CriuChoice {
  const plugins = join(choice.tree, STOCK);
  if (!existsSync(join(plugins, 'cuda_plugin.so'))) {
    throw unfitError(
      'ERR_CUDAPOOL_PLUGIN_NOT_BUILT',
      `${plugins}/cuda_plugin.so is not there`,
      'cudapool build keeps one',
    );
  }
  return { ...choice, plugins };
}

/** The tree that was asked for, or the one that `cudapool build` made. */
export function chooseCriu(asked?: string): CriuChoice {
  if (asked !== undefined) {
    const choice = at(resolve(asked));
    if (!isExecutable(choice.binary)) {
      throw unfitError(
        'ERR_CUDAPOOL_CRIU_NOT_BUILT',
        `${choice.binary} is not there: ${existsSync(choice.tree) ? 'the tree is not built' : 'there is no such tree'}`,
        `cudapool build --criu-src ${choice.tree}`,
      );
    }
    if (!existsSync(join(choice.plugins, 'cuda_plugin.so'))) {
      throw unfitError(
        'ERR_CUDAPOOL_PLUGIN_NOT_BUILT',
        `${choice.plugins}/cuda_plugin.so is not there`,
        `make -C ${choice.tree} plugins`,
      );
    }
    return choice;
  }
  const build = inRoot('build');
  const found = (existsSync(build) ? readdirSync(build) : [])
    .filter((name) => name.startsWith('criu-'))
    .map((name) => at(join(build, name)))
    .filter((choice) => isExecutable(choice.binary) && existsSync(join(choice.plugins, 'cuda_plugin.so')));
  const best = found.find((choice) => choice.tree === criuTree(CRIU_DEFAULT)) ?? found.at(-1);
  if (best === undefined) {
    throw unfitError('ERR_CUDAPOOL_CRIU_NOT_BUILT', 'there is no CRIU with the patched plugin yet', 'cudapool build');
  }
  return best;
}
