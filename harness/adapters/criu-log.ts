// SPDX-License-Identifier: MIT
// What CRIU's own log says about a dump or a restore: which way the CUDA plugin went, and why something failed.
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

/**
 * pool: the pool did the actions. stock: the plugin executed cuda-checkpoint for each. disabled: the plugin
 * was loaded and did nothing (no GPU, no cuda-checkpoint, no process with CUDA). absent: CRIU
 * did not load it. unknown: there is no log.
 */
export type PluginPath = 'pool' | 'stock' | 'disabled' | 'absent' | 'unknown';

export interface CriuLog {
  readonly file: string;
  readonly criu_version: string | undefined;
  readonly path: PluginPath;
  /** The line that shows it. */
  readonly why: string;
  /** The plugin's lines, in order, as CRIU wrote them. */
  readonly plugin_messages: readonly string[];
  readonly errors: readonly string[];
  readonly tail: readonly string[];
}

const MAX_BYTES = 32 << 20;
const MAX_MESSAGES = 200;
/** CRIU raises a limit of its own at every start; where it may not, it says so, and goes on. */
const HARMLESS = /rlimit: Can't setup RLIMIT_NOFILE for self/;

/** The last part of an open file: as much of a log as is looked at. */
export function readTail(fd: number): string {
  const { size } = fstatSync(fd);
  const buffer = Buffer.alloc(Math.min(size, MAX_BYTES));
  const got = readSync(fd, buffer, 0, buffer.length, size - buffer.length);
  return buffer.toString('utf8', 0, got);
}

/** The log in this file. */
export function readCriuLog(file: string): CriuLog {
  let fd: number;
  try {
    fd = openSync(file, 'r');
  } catch {
    return { file, ...NO_LOG };
  }
  try {
    return { file, ...parseCriuLog(readTail(fd)) };
  } finally {
    closeSync(fd);
  }
}

export const NO_LOG: Omit<CriuLog, 'file'> = {
  criu_version: undefined,
  path: 'unknown',
  why: 'CRIU wrote no log',
  plugin_messages: [],
  errors: [],
  tail: [],
};

export function parseCriuLog(text: string): Omit<CriuLog, 'file'> {
  const lines = text.split('\n').filter((line) => line.trim() !== '');
  const plugin = lines.filter((line) => line.includes('cuda_plugin: '));
  return {
    criu_version: /\bVersion: (\S+)/.exec(text)?.[1],
    ...pathOf(lines, plugin),
    plugin_messages: plugin.slice(0, MAX_MESSAGES),
    errors: lines.filter((line) => /\bError \(/.test(line) && !HARMLESS.test(line)).slice(-MAX_MESSAGES),
    tail: lines.slice(-15),
  };
}

/** The text of a log line without CRIU's time stamp, level and place. */
export const messageOf = (line: string): string =>
  line.replace(/^\([\d.]+\)\s*(?:\d+:\s*)?(?:(?:Error|Warn)\s+\([^)]*\):\s*)?/, '').trim();

function pathOf(lines: readonly string[], plugin: readonly string[]): { path: PluginPath; why: string } {
  const said = plugin.map(messageOf).map((text) => text.replace(/^cuda_plugin: /, ''));
  const find = (pattern: RegExp): string | undefined => said.find((text) => pattern.test(text));

  if (!lines.some((line) => line.includes('Plugin "cuda_plugin"')) && plugin.length === 0) {
    const failed = lines.find((line) => /Unable to load|Can't load plugin|libraries directory/.test(line));
    return { path: 'absent', why: failed === undefined ? 'CRIU found no cuda_plugin.so' : messageOf(failed) };
  }
  const gaveUp = find(/plugin is disabled|Disabling CUDA plugin|is present in \$PATH/);
  if (gaveUp !== undefined) return { path: 'disabled', why: gaveUp };
  const without = find(/going on with |GPU context pool is off|GPU context pool and parallel restore are off/);
  if (without !== undefined) return { path: 'stock', why: without };
  const pool = find(/GPU context pool ENABLED/);
  if (pool !== undefined) return { path: 'pool', why: pool };
  if (find(/^initialized: /) !== undefined) return { path: 'stock', why: 'the plugin is not patched' };
  return { path: 'disabled', why: 'no process of the container had used CUDA' };
}
