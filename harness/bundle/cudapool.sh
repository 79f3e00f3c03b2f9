#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs cudapool from an unpacked bundle: no npm, no compiler, no registry.
here=$(dirname "$(dirname "$(readlink -f "$0")")")
PATH=$here/tools:${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
for dir in /usr/local/nvidia/bin /usr/local/cuda/bin; do
	[ -d "$dir" ] && PATH=$PATH:$dir
done
export PATH
# Where the loader does not know the driver, as in machines that are given its folder.
if ! ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then
	for dir in /usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib/x86_64-linux-gnu/nvidia; do
		if [ -e "$dir/libcuda.so.1" ]; then
			LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$dir
			export LD_LIBRARY_PATH
		fi
	done
fi
# runc executes itself with an empty environment, so that this one is not found in the bundle.
if ! ldconfig -p 2>/dev/null | grep -q 'libseccomp\.so\.2'; then
	echo "warning: no libseccomp.so.2 on this machine: podman's runc will not start" >&2
	echo "hint: cp $here/lib/libseccomp.so.2 /usr/local/lib/ && ldconfig" >&2
fi
# node's own libraries only where the machine has none that serves: PyTorch brings newer ones.
if ! "$here/tools/node" --version >/dev/null 2>&1; then
	LD_LIBRARY_PATH=$here/lib-node${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	export LD_LIBRARY_PATH
fi
exec "$here/tools/node" "$here/bin/cudapool.mjs" "$@"
