#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs the program beside it with the bundle's libraries, which podman's clearing of the environment would lose.
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$here/@UP@/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/@PROGRAM@" "$@"
