// SPDX-License-Identifier: MIT
// `cudapool report`, as typed: rendering, comparing, and its exit codes.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { formatDocument } from '../../harness/bench/record.ts';
import { cudapool, tempDir } from '../support/index.ts';
import { host, POOL_MS, record, STOCK_MS } from './fixture.ts';

t.test('report', async (t) => {
  const dir = tempDir(t);
  const file = (name: string, text: string): string => {
    writeFileSync(join(dir, name), text);
    return join(dir, name);
  };
  const before = file('before.json', formatDocument(host, [record()]));
  const slower = (percent: number): string => {
    const pool = POOL_MS.map((value) => value * (1 + percent / 100));
    return file(`slower-${percent}.json`, formatDocument(host, [record(STOCK_MS, pool)]));
  };

  const rendered = await cudapool(['report', before]);
  t.equal(rendered.exitCode, 0, rendered.stderr);
  t.match(rendered.stdout, /### criu \(0mib\)/);

  const same = await cudapool(['report', '--baseline', before, before]);
  t.equal(same.exitCode, 0);
  t.match(same.stdout, /^ok: criu \(0mib\), pool, restore_ms: 500\.0 → 500\.0 ms \(\+0\.0 %\)$/m);

  const allowed = await cudapool(['report', '--baseline', before, '--max-regression', '25', slower(20)]);
  t.equal(allowed.exitCode, 0, 'within what is allowed');

  const regressed = await cudapool(['report', '--baseline', before, '--max-regression', '10', slower(20)]);
  t.equal(regressed.exitCode, 4);
  t.match(regressed.stdout, /^REGRESSED: .*pool.*\+20\.0 %/m);
  t.match(regressed.stdout, /^ok: .*stock/m);

  const scattered = await cudapool(['report', '--baseline', before, '--max-regression', '1', slower(2)]);
  t.equal(scattered.exitCode, 0, 'what the scatter explains is no regression');

  const usage: [args: string[], message: RegExp][] = [
    [['report'], /missing required argument/],
    [['report', join(dir, 'none.json')], /cannot read .*none\.json/],
    [['report', file('broken.json', '{"schema":')], /broken\.json: not JSON/],
    [
      [
        'report',
        '--baseline',
        file('simulated.json', formatDocument({ ...host, simulated: true }, [record()])),
        before,
      ],
      /cannot be compared/,
    ],
    [['report', '--max-regression', 'much', before], /percentage/],
    [['bench', 'nosuchsuite'], /no suite named nosuchsuite/],
    [['bench', '--runs', '0'], /whole number from 1/],
  ];
  for (const [args, message] of usage) {
    const ran = await cudapool(args);
    t.equal(ran.exitCode, 2, args.join(' '));
    t.match(ran.stderr, message);
    t.equal(ran.stdout, '', 'nothing but data on stdout');
  }
});
