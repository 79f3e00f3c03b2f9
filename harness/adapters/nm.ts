// SPDX-License-Identifier: MIT
// nm(1): the symbols of a library.
import { look } from './exec.ts';

export interface ElfSymbol {
  name: string;
  /** As nm prints it: lower case for what is local, t for code, b for data without a value. */
  type: string;
}

export async function symbolsOf(file: string): Promise<ElfSymbol[]> {
  const { stdout } = await look('nm', [file], { package: 'binutils', env: { LC_ALL: 'C' } });
  return stdout.split('\n').flatMap((line) => {
    const [, type, name] = line.match(/^[0-9a-f ]+ ([A-Za-z?]) (\S+)$/) ?? [];
    return type === undefined || name === undefined ? [] : [{ type, name }];
  });
}
