// SPDX-License-Identifier: MIT
// Checks for the values of options, so that a wrong one is a usage error.
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';

/** A whole number within bounds. */
export const wholeNumber =
  (min: number, max: number) =>
  (text: string): number => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max))
      throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`);
    return value;
  };

/** A folder that exists, as an absolute path. */
export function existingDir(text: string): string {
  const path = resolve(text);
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw new InvalidArgumentError(`${path} is not a folder.`);
  }
  return path;
}

/** A time, as 90s, 30m, 12h or 7d; in seconds. */
export function duration(text: string): number {
  const [, number, unit] = /^(\d{1,7})([smhd])$/.exec(text) ?? [];
  if (number === undefined) throw new InvalidArgumentError('It must be a number and s, m, h or d, as in 12h or 7d.');
  return Number(number) * { s: 1, m: 60, h: 3600, d: 86_400 }[unit as 's' | 'm' | 'h' | 'd'];
}

/** Adds --podman-arg, which may be given several times; without it the option is undefined. */
export const podmanArgs = (command: Command): Command =>
  command.option(
    '--podman-arg <arg>',
    'a global option of podman, as --podman-arg=--root=/srv/podman; may be repeated',
    (arg: string, all: readonly string[] = []) => [...all, arg],
  );
