// SPDX-License-Identifier: MIT
// All suites, in the order in which 'all' runs them: what the targets are about first, in case the time ends.
import type { Suite } from '../suite.ts';
import { costSuite } from './cost.ts';
import { criuSuite } from './criu.ts';
import { frameworksSuite } from './frameworks.ts';
import { lateSuite } from './late.ts';
import { leaksSuite } from './leaks.ts';
import { llamaSuite } from './llama.ts';
import { loadSuite } from './load.ts';
import { microSuite } from './micro.ts';
import { pytorchSuite } from './pytorch.ts';
import { restoreSuite } from './restore.ts';
import { reserveSuite, sizesSuite } from './sizes.ts';
import { steadySuite } from './steady.ts';
import { treeSuite } from './tree.ts';
import { workerKillSuite } from './worker-kill.ts';

export const allSuites: readonly Suite[] = [
  llamaSuite,
  steadySuite,
  sizesSuite,
  reserveSuite,
  loadSuite,
  frameworksSuite,
  criuSuite,
  restoreSuite,
  pytorchSuite,
  lateSuite,
  microSuite,
  costSuite,
  workerKillSuite,
  leaksSuite,
  treeSuite,
];
