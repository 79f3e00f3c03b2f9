// SPDX-License-Identifier: MIT
// Debian's packages: what is installed, installing what is not, and upstream sources with their signature checked.
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CudapoolError, unfitError } from '../errors.ts';
import { type ExecOptions, exec, isDryRun, look, which } from './exec.ts';

const UPDATE_MS = 300_000;
const INSTALL_MS = 900_000;
const quiet = { DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' };

/** The packages of `names` that are not installed. */
export async function missingPackages(names: readonly string[]): Promise<string[]> {
  if (which('dpkg-query') === undefined) {
    throw unfitError(
      'ERR_CUDAPOOL_NOT_DEBIAN',
      'this is not a Debian or Ubuntu: cudapool cannot tell which packages are there',
      `install what these packages hold, then use --no-packages: ${names.join(' ')}`,
    );
  }
  // It exits 1 when it does not know a name at all.
  const { stdout } = await look('dpkg-query', ['-W', '-f', '$' + '{Package} $' + '{db:Status-Status}\\n', ...names], {
    reject: false,
    env: quiet,
  });
  const installed = new Set<string>();
  for (const line of stdout.split('\n')) {
    const [name, status] = line.split(' ');
    if (name !== undefined && status === 'installed') installed.add(name);
  }
  return names.filter((name) => !installed.has(name));
}

/** Installs packages from the sources that the machine is set up with. The caller has checked for root. */
export async function installPackages(names: readonly string[], onLine?: ExecOptions['onLine']): Promise<void> {
  const shown = onLine === undefined ? {} : { onLine };
  await exec('apt-get', ['update'], { timeoutMs: UPDATE_MS, env: quiet, ...shown });
  await exec('apt-get', ['install', '--yes', '--no-install-recommends', ...names], {
    timeoutMs: INSTALL_MS,
    env: quiet,
    ...shown,
  });
}

export interface SourceRequest {
  /** Debian's source package. */
  source: string;
  /** Upstream's version. */
  version: string;
  /** The suite that carries it. */
  suite: string;
  /** Folder for apt's state and the tarball; the machine's own apt configuration is not touched. */
  dir: string;
}

/**
 * Fetches upstream's tarball of a Debian source package and returns its path. apt checks it
 * against the archive's signed index.
 */
export async function fetchSource({ source, version, suite, dir }: SourceRequest): Promise<string> {
  const tarball = join(dir, `${source}_${version}.orig.tar.xz`);
  if (existsSync(tarball)) return tarball;
  const apt = join(dir, `apt-${suite}`);
  const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';
  if (!existsSync(keyring)) {
    throw unfitError(
      'ERR_CUDAPOOL_NO_KEYRING',
      `${keyring} is missing: the sources could not be verified`,
      'apt-get install debian-archive-keyring',
    );
  }
  if (!isDryRun()) configure(apt, keyring, suite);
  const env = { ...quiet, APT_CONFIG: join(apt, 'apt.conf') };
  await exec('apt-get', ['update'], { timeoutMs: UPDATE_MS, env });
  const { stdout } = await look('apt-cache', ['showsrc', source], { timeoutMs: 60_000, env, reject: false });
  const offered = [...stdout.matchAll(/^Version: (\S+)$/gm)].map((match) => match[1] as string);
  const wanted = offered.find((full) => full.replace(/^\d+:/, '').replace(/-[^-]*$/, '') === version);
  if (wanted === undefined && !isDryRun()) {
    throw new CudapoolError('ERR_CUDAPOOL_NO_SOURCE', `Debian ${suite} does not carry ${source} ${version} any more`, {
      hint: `it carries ${offered.join(', ') || 'none'}; put ${source}_${version}.orig.tar.xz into ${dir}, or use --criu-src with a tree of your own`,
    });
  }
  await exec('apt-get', ['source', '--download-only', '--tar-only', `${source}=${wanted ?? version}`], {
    cwd: dir,
    timeoutMs: INSTALL_MS,
    env,
  });
  if (!isDryRun()) rmSync(apt, { recursive: true, force: true }); // the index is large, and soon old
  return tarball;
}

/** An apt configuration of its own below `apt`: one signed suite, sources only. */
function configure(apt: string, keyring: string, suite: string): void {
  for (const part of ['lists/partial', 'cache/archives/partial']) mkdirSync(join(apt, part), { recursive: true });
  writeFileSync(
    join(apt, 'sources.list'),
    `deb-src [signed-by=${keyring}] http://deb.debian.org/debian ${suite} main\n`,
  );
  writeFileSync(
    join(apt, 'apt.conf'),
    [
      `Dir::Etc::SourceList "${join(apt, 'sources.list')}";`,
      'Dir::Etc::SourceParts "/nonexistent";',
      'Dir::Etc::Preferences "/nonexistent";',
      'Dir::Etc::PreferencesParts "/nonexistent";',
      `Dir::State::Lists "${join(apt, 'lists')}";`,
      `Dir::Cache "${join(apt, 'cache')}";`,
      'Acquire::Languages "none";',
      'Acquire::Retries "3";',
      'APT::Sandbox::User "root";', // _apt cannot write below a private folder
      '',
    ].join('\n'),
  );
}
