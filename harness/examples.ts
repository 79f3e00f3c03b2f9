// SPDX-License-Identifier: MIT
// The examples at the end of each command's --help.
import type { Command } from 'commander';

const examples: Readonly<Record<string, readonly string[]>> = {
  check: ['cudapool check', 'cudapool check --criu-src /root/criu', 'cudapool check --software --json'],
  setup: ['cudapool setup', 'cudapool setup --for use --no-packages'],
  'patch apply': ['cudapool patch apply --criu-src /root/criu', 'cudapool patch apply --criu-src /root/criu --dry-run'],
  'patch verify': ['cudapool patch verify --criu-src /root/criu'],
  'patch diff': ['cudapool patch diff --criu-src /root/criu | less'],
  'patch rollback': ['cudapool patch rollback --criu-src /root/criu'],
  build: ['cudapool build', 'cudapool build --criu-src /root/criu --jobs 4'],
  run: [
    'cudapool run -- python3 train.py',
    'cudapool run --warm start:python3 -- python3 train.py',
    'cudapool run -- podman run --detach --name mycontainer IMAGE',
  ],
  checkpoint: [
    'cudapool checkpoint --keep mycontainer',
    'cudapool checkpoint --export /srv/mycontainer.tar mycontainer',
    'cudapool checkpoint --keep --create-image registry.example/mycontainer:warm mycontainer',
    'cudapool checkpoint --keep --dry-run mycontainer',
  ],
  restore: [
    "cudapool restore --keep mycontainer 2>&1 | grep -i 'context pool'",
    'cudapool restore --keep --no-pool mycontainer',
    'cudapool restore --import /srv/mycontainer.tar --name other',
    'cudapool restore --name other registry.example/mycontainer:warm',
  ],
  'pool start': ['cudapool pool start', 'cudapool pool start --idle 600 --contexts 0'],
  'pool restart': ['cudapool pool restart'],
  'pool stop': ['cudapool pool stop'],
  status: ['cudapool status', 'cudapool status --json | jq .status.worker', 'cudapool status --pid 4711'],
  evict: ['cudapool evict', 'cudapool evict mycontainer --tier cold', 'cudapool evict --dry-run'],
  prefetch: ['cudapool prefetch mycontainer', 'cudapool prefetch --tier staged /srv/checkpoint'],
  'image inspect': [
    'cudapool image inspect /srv/checkpoint',
    'cudapool image inspect --json FILE | jq .images[].bytes',
  ],
  'image verify': ['cudapool image verify /srv/checkpoint'],
  'image prune': ['cudapool image prune --older-than 7d --dry-run', 'cudapool image prune --older-than 7d'],
  options: ['cudapool options', 'cudapool options --json'],
  demo: ['cudapool demo', 'cudapool demo --runs 10 --memory 1024'],
  bench: [
    'cudapool bench --json record.json',
    'cudapool bench criu restore --runs 15 --export-markdown results.md',
    'cudapool bench all --budget 480 --out results/',
  ],
  report: ['cudapool report record.json', 'cudapool report --baseline before.json --max-regression 5 after.json'],
  bundle: ['cudapool bundle --out /tmp/bundle'],
};

export function addExamples(command: Command, path = ''): void {
  for (const sub of command.commands) {
    const name = `${path}${sub.name()}`;
    const lines = examples[name];
    if (lines !== undefined) sub.addHelpText('after', `\nExamples:\n${lines.map((line) => `  ${line}`).join('\n')}`);
    addExamples(sub, `${name} `);
  }
}
