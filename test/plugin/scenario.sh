# SPDX-License-Identifier: MIT
# Steps of a scenario; sourced by bash as the first process of a pid namespace of its own, so that pids are free at
# a restore and nothing outlives the test. Set by the caller: CRIU, CRIU_LIBS_DIR, T (an empty folder), FAKE (programs).
# Results are lines NAME=VALUE on stdout.
export FAKE_STATE_DIR=$T CUDAPOOL_SOCKET=$T/pool.sock CUDAPOOL_CONFIG=$T/conf CRIU_FAULT=138
export CUDAPOOL_START=${CUDAPOOL_START-0} PATH=${TOOLS-$FAKE/bin}:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "$T/img"
ANSWERS=$T
RESTORE=
: >"$T/conf"

# start_app CUDA PLAIN: a tree of so many processes that do and do not 'use CUDA'
start_app() {
	"$FAKE/app" "$1" "$2" "$T" &
	APP=$!
	TREE=$(($1 + $2))
	wait_for "ls $T/alive.* 2>/dev/null | wc -l | grep -qx $TREE"
	rm -f "$T"/alive.*
}

# The same in pid and mount namespaces of its own, as in a container
start_contained_app() {
	ANSWERS=$T/root/answers
	mkdir -p "$ANSWERS"
	cp "$FAKE/app" "$T/root/app"
	"$FAKE/app" "$1" "$2" /answers "$T/root" &
	TREE=$(($1 + $2))
	wait_for "ls $ANSWERS/alive.* 2>/dev/null | wc -l | grep -qx $TREE"
	rm -f "$ANSWERS"/alive.*
	APP=$(pgrep -P $!)
	mount --bind "$T/root" "$T/root"
	RESTORE="--root $T/root"
}

# start_gpu_app PROCESSES [HOLDS]: a tree that really uses the (software) driver. Needs DRIVER, the folder of softcuda.
start_gpu_app() {
	export SOFTCUDA_DIR=$T/device LD_LIBRARY_PATH=$DRIVER/lib PATH=$DRIVER/bin:$PATH
	mkdir -p "$SOFTCUDA_DIR"
	LD_PRELOAD=${SHIM-} "$FAKE/gpuapp" "$1" "$T" ${2-} &
	APP=$!
	TREE=$1
	wait_for "ls $T/alive.* 2>/dev/null | wc -l | grep -qx $TREE"
	rm -f "$T"/alive.*
}

# start_cudapoold ARGUMENT...: the real pool. Needs DAEMON.
start_cudapoold() {
	"$DAEMON" --foreground --socket "$CUDAPOOL_SOCKET" "$@" >>"$T/pool.log" 2>&1 &
	POOL=$!
	wait_for "test -S $CUDAPOOL_SOCKET"
}

# Returns when the pool's driver is warm, or is known to be unusable
pool_ready() {
	wait_for '"$DAEMON" --status --socket "$CUDAPOOL_SOCKET" | grep -qE "\"state\":\"(warm|failed)\""'
}

# Returns when the driver has been busy for three looks with what the fault makes slow: other actions take microseconds
driver_busy() {
	wait_for 'acting && sleep 0.02 && acting && sleep 0.02 && acting'
}

# True while the pool carries an action out
acting() {
	"$DAEMON" --status --socket "$CUDAPOOL_SOCKET" | grep -qE '"actions":\{[^}]*"running":[1-9]'
}

# From here on nothing but the pool tells CRIU of a GPU. (The mount ends with the scenario.)
no_proc_driver() {
	unset CRIU_FAULT
	[ ! -d /proc/driver/nvidia ] || mount -t tmpfs none /proc/driver/nvidia
}

# fault NAME=WHAT: the driver misbehaves in every process; nothing: no longer
fault() {
	if [ $# -gt 0 ]; then echo "$1" >"$T/device/faults"; else rm -f "$T/device/faults"; fi
}

# What the pool holds, and how often it gave something back
pool_counts() {
	"$DAEMON" --status --socket "$CUDAPOOL_SOCKET" |
		sed -E 's/.*"held_count":([0-9]+).*"given_back":\{"ok":([0-9]+).*/held=\1\ngiven_back=\2/'
}

start_pool() {
	"$FAKE/fakepool" --socket "$CUDAPOOL_SOCKET" "$@" &
	POOL=$!
	wait_for "test -S $CUDAPOOL_SOCKET"
}

stop_pool() {
	kill "$POOL"
	wait "$POOL" 2>/dev/null
	rm -f "$CUDAPOOL_SOCKET"
}

wait_for() {
	for _ in $(seq 1000); do
		eval "$1" && return
		sleep 0.01
	done
	echo "gave_up=$1"
	exit 1
}

# criu_do NAME ARGUMENT...: runs CRIU, notes exit code and time
criu_do() {
	local name=$1 start=${EPOCHREALTIME/./} rc
	shift
	rm -f "$T/$name.log"
	timeout -s KILL 30 "$CRIU" "$@" -D "$T/img" -v4 -o "$T/$name.log" --network-lock skip >/dev/null 2>&1
	rc=$?
	echo "$name=$rc"
	echo "${name}_ms=$(((${EPOCHREALTIME/./} - start) / 1000))"
}

dump() {
	criu_do "${NAME-dump}" dump -t "$APP" "$@"
}

restore() {
	criu_do "${NAME-restore}" restore -d $RESTORE "$@"
}

# What signals the threads of the tree block, in the order of their ids
masks() {
	echo "$1=$(for pid in $(pgrep -x 'cuda-app|gpuapp'); do grep -h SigBlk "/proc/$pid/task"/*/status; done | awk '{printf "%s ", $2}')"
}

# Images of parked GPU memory
parked_images() {
	echo "$1=$(ls "$T"/img/cudapool-*.img 2>/dev/null | wc -l)"
}

# What the processes' memory takes in the images
image_mib() {
	cat "$T"/img/pages-*.img | wc -c | awk '{ print "image_mib=" int($1 / 1048576) }'
}

# Who of the tree runs and answers
answers() {
	rm -f "$ANSWERS"/alive.*
	pkill -USR1 -x cuda-app
	pkill -USR1 -x plain-app
	pkill -USR1 -x gpuapp
	for _ in $(seq 400); do
		[ "$(ls "$ANSWERS"/alive.* 2>/dev/null | wc -l)" = "$TREE" ] && break
		sleep 0.01
	done
	printf -v "$1" %s "$(ls "$ANSWERS"/alive.* 2>/dev/null | wc -l)"
	echo "$1=${!1}"
}

# Processes and zombies of the tree
left() {
	echo "$1=$(ps -eo comm | grep -cE '^(cuda-app|plain-app|app|gpuapp)')"
}

# Ends a tree that runs or is stopped
end_app() {
	pkill -KILL -x 'cuda-app|plain-app|gpuapp'
	wait_for 'left rest | grep -qx rest=0'
}

# States of the processes' GPU side: 0 running, 1 locked, 2 checkpointed
states() {
	echo "$1=$(cat "$T"/state.* 2>/dev/null | fold -w1 | sort | uniq -c | awk '{printf "%s%sx%s", s, $2, $1; s=","}')"
}

# Puts the processes' GPU side back to what it was when they were dumped: a driver has that in the process itself
as_dumped() {
	for file in "$T"/state.*; do
		printf 2 >"$file"
	done
}
