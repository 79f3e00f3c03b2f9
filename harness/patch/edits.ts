// SPDX-License-Identifier: MIT
// The edits of criu-plugin-patch/edits.json, and how they find their places in upstream's text.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as v from 'valibot';
import { CudapoolError } from '../errors.ts';
import { inRoot, version } from '../paths.ts';

const room = (...parts: string[]): string => inRoot('criu-plugin-patch', ...parts);

const common = {
  file: v.string(),
  /** Which of the guide's six changes, or one of ours. */
  change: v.number(),
  /** The fragment that is inserted. */
  insert: v.string(),
  purpose: v.string(),
};
const editSchema = v.variant('where', [
  /** Before or after the one line that matches, in the whole file or in one function's body. */
  v.object({ ...common, where: v.picklist(['before', 'after']), anchor: v.string(), function: v.optional(v.string()) }),
  /** At the beginning or the end of a function's body. */
  v.object({ ...common, where: v.picklist(['begin', 'end']), function: v.string() }),
]);
const tableSchema = v.object({
  schema: v.literal('cudapool-criu-edits/1'),
  /** The versions of CRIU that the anchors were written for, as a range. */
  criu: v.string(),
  /** SHA-256 of the released files, by version: tells a file that somebody edited from a release that is new to us. */
  released: v.record(v.string(), v.record(v.string(), v.string())),
  changes: v.record(v.string(), v.string()),
  add: v.array(v.object({ from: v.string(), to: v.string(), files: v.array(v.string()) })),
  edits: v.array(editSchema),
});
export type Edit = v.InferOutput<typeof editSchema>;
export type EditTable = v.InferOutput<typeof tableSchema>;

export function readEdits(): EditTable {
  return v.parse(tableSchema, JSON.parse(readFileSync(room('edits.json'), 'utf8')));
}

/** A fragment without the license line that it has as a file of ours. */
export function readFragment(name: string): string[] {
  const [license, ...lines] = readFileSync(room('fragments', name), 'utf8').split('\n');
  if (license === undefined || !license.includes('SPDX-License-Identifier: GPL-2.0-only')) {
    throw new CudapoolError('ERR_CUDAPOOL_INTERNAL', `fragments/${name} does not begin with its license`);
  }
  lines.pop(); // what follows the last newline
  return lines;
}

/** What apply adds to the tree: path in the tree and content. */
export function addedFiles(table: EditTable): { path: string; content: string }[] {
  return table.add.flatMap(({ from, to, files }) =>
    files.map((file) => ({
      path: join(to, file),
      content: readFileSync(inRoot(from, file), 'utf8').replaceAll('@CUDAPOOL_VERSION@', version),
    })),
  );
}

/** The names of the files that are edited, each once. */
export const editedFiles = (table: EditTable): string[] => [...new Set(table.edits.map((edit) => edit.file))];

/** An edit that did not find its place, and why. */
export interface Misplaced {
  edit: Edit;
  reason: string;
}

/** Upstream's text with all edits of this file. Every place is looked up in the original, so no edit disturbs another. */
export function editText(original: string, edits: readonly Edit[]): { text: string } | { misplaced: Misplaced[] } {
  const lines = original.split('\n');
  const inserts = new Map<number, string[]>();
  const misplaced: Misplaced[] = [];
  for (const edit of edits) {
    const place = findPlace(lines, edit);
    if (typeof place === 'string') misplaced.push({ edit, reason: place });
    else inserts.set(place, [...(inserts.get(place) ?? []), ...readFragment(edit.insert)]);
  }
  if (misplaced.length > 0) return { misplaced };
  const out = lines.flatMap((line, i) => [...(inserts.get(i) ?? []), line]);
  return { text: [...out, ...(inserts.get(lines.length) ?? [])].join('\n') };
}

/** The index of the line before which the fragment goes, or why there is none. */
function findPlace(lines: readonly string[], edit: Edit): number | string {
  let first = 0;
  let end = lines.length;
  if (edit.function !== undefined) {
    const head = findOne(lines, edit.function, first, end);
    if (typeof head === 'string') return head;
    const open = lines.indexOf('{', head);
    const close = lines.indexOf('}', head);
    if (open < 0 || close < open) return `no body follows ${edit.function}`;
    if (edit.where === 'begin') return open + 1;
    if (edit.where === 'end') return close;
    first = open + 1;
    end = close;
  }
  const at = findOne(lines, 'anchor' in edit ? edit.anchor : '', first, end);
  return typeof at === 'number' && edit.where === 'after' ? at + 1 : at;
}

function findOne(lines: readonly string[], pattern: string, first: number, end: number): number | string {
  const expression = new RegExp(pattern);
  const found: number[] = [];
  for (let i = first; i < end; i++) if (expression.test(lines[i] ?? '')) found.push(i);
  const [at] = found;
  if (at !== undefined && found.length === 1) return at;
  return found.length === 0
    ? `nothing matches ${pattern}`
    : `lines ${found.map((i) => i + 1).join(', ')} match ${pattern}`;
}
