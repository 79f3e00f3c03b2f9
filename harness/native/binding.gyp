# SPDX-License-Identifier: MIT
# The C rooms, each built by its own Makefile. `cudapool setup` calls node-gyp on this file; it is not at the root,
# where `npm install` would. The outputs named here are never made, so that make decides what is up to date.
{
  'variables': {
    'make': ['env', '-u', 'MAKEFLAGS', '-u', 'MFLAGS', 'make', '--no-print-directory', '-C'],
  },
  'targets': [
    {
      'target_name': 'rooms',
      'type': 'none',
      'actions': [
        {
          'action_name': 'preload',
          'message': 'shim: preload/',
          'inputs': [],
          'outputs': ['<(INTERMEDIATE_DIR)/preload.always'],
          'action': ['<@(make)', '../../preload'],
        },
        {
          'action_name': 'pool',
          'message': 'pool: pool/',
          'inputs': [],
          'outputs': ['<(INTERMEDIATE_DIR)/pool.always'],
          'action': ['<@(make)', '../../pool'],
        },
        {
          'action_name': 'softcuda',
          'message': 'software driver: softcuda/',
          'inputs': [],
          'outputs': ['<(INTERMEDIATE_DIR)/softcuda.always'],
          'action': ['<@(make)', '../../softcuda'],
        },
        {
          'action_name': 'workloads',
          'message': 'workloads: workloads/',
          'inputs': [],
          'outputs': ['<(INTERMEDIATE_DIR)/workloads.always'],
          'action': ['<@(make)', '../../workloads'],
        },
      ],
    },
  ],
}
