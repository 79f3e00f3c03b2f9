// SPDX-License-Identifier: MIT
// The bundle's entry: what bin/launcher.mjs is in a checkout, without anything to set up.
import { main } from '../build/harness/cli.js';

process.exitCode = await main(process.argv.slice(2));
