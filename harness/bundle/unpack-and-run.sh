#!/bin/sh
# SPDX-License-Identifier: MIT
# Unpacks cudapool once, checked against its checksum, and runs it: unpack-and-run.sh COMMAND [ARGUMENT...]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
archive=$here/@ARCHIVE@
sum=@SHA256@
dir=${CUDAPOOL_BUNDLE_DIR:-/tmp/cudapool-bundle}
if [ "$(cat "$dir/bundle.sha256" 2>/dev/null || true)" != "$sum" ]; then
	if ! echo "$sum  $archive" | sha256sum --check --status; then
		echo "error: $archive is not what this script was made with" >&2
		echo "hint: copy both files of the bundle again" >&2
		exit 3
	fi
	rm -rf "$dir.new"
	mkdir -p "$dir.new"
	if command -v xz >/dev/null 2>&1; then
		xz -dc -T0 "$archive" | tar -xf - -C "$dir.new"
	else
		python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])' "$archive" "$dir.new"
	fi
	echo "$sum" >"$dir.new/bundle.sha256"
	rm -rf "$dir"
	mv "$dir.new" "$dir"
fi
exec "$dir/bin/cudapool" "$@"
