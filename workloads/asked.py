# SPDX-License-Identifier: MIT
"""The workload's side of protocol.h for Python: seeing a question, writing the answer; and a loop that has work in flight."""

import argparse
import collections
import ctypes
import hashlib
import json
import os
import signal
import statistics
import sys
import time

POLL_S = 0.0005  # WORKLOAD_POLL_NS
LEAD = 2  # steps that are in flight at any moment


def digest_of(numbers):
    """Sixteen hexadecimal digits for a list of whole numbers."""
    text = ",".join(str(int(number)) for number in numbers)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Asked:
    """Questions in a directory, answered once each."""

    def __init__(self, directory):
        self.directory = directory
        self.question = os.path.join(directory, "ask")
        self.seen = None
        self.nonce = None
        self.counter = 0

    def new(self):
        """True if there is a question that was not answered yet."""
        try:
            found = os.stat(self.question)
            if self.seen == (found.st_ino, found.st_mtime_ns):
                return False
            with open(self.question) as file:
                words = file.read(128).split()
        except FileNotFoundError:
            return False
        self.seen = (found.st_ino, found.st_mtime_ns)
        if not words or words[0] == self.nonce:
            return False
        self.nonce = words[0]
        self.began = time.time()
        return True

    def answer(self, **fields):
        self.counter += 1
        base = {"nonce": self.nonce, "index": 0, "pid": os.getpid(), "counter": self.counter}
        took = {"answer_us": round((time.time() - self.began) * 1e6)}
        path = os.path.join(self.directory, "answer")
        with open(path + ".tmp", "w") as file:
            file.write(json.dumps({**base, **fields, **took}) + "\n")
        os.rename(path + ".tmp", path)


def arguments(description):
    """A parser with what every workload is told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dir", required=True, help="where it is asked and answers (workloads/protocol.h)")
    return parser


def ready():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the root of a container gets no default action
    print("READY", flush=True)


def what_each_gives(program):
    """The results of an epoch's steps, found out twice, as a program that differs from itself shows nothing."""
    expected, again = ([program.result(program.submit(i)) for i in range(program.epoch)] for _ in range(2))
    if expected != again:
        sys.exit(f"{os.path.basename(sys.argv[0])}: two runs differ without any checkpoint")
    return expected


def past_shim(past):
    """Whether the calls of this process go past its shim from now on, or through it (two_ways.h)."""
    try:
        both = ctypes.CDLL(None).two_ways(past)
    except AttributeError:
        both = 0
    if past and both == 0:
        sys.exit(f"{os.path.basename(sys.argv[0])}: no shim is between this process and its driver")


def take_turns(**programs):
    """
    Steps one of `programs`, each a function that makes one as serve() needs it, when it is its turn: each line of standard input names
    one and says how many steps, and is answered with how many milliseconds one of them took. The first counts, too: that others had
    the processor and the GPU before is the same for all who take turns. A third word, if any, names a lane, which has a program of
    its own and so takes the same steps as the others, one after another; all that are named go past the shim. One step at a time, by
    one thread, on one processor.
    """
    expected = {name: what_each_gives(make()) for name, make in programs.items()}
    lanes = {}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    ready()
    for line in sys.stdin:
        name, steps, *lane = line.split()
        if (name, *lane) not in lanes:
            lanes[(name, *lane)] = [programs[name](), 0]
        program, done = lanes[(name, *lane)]
        past_shim(len(lane) > 0)
        wrong = 0
        begun = time.monotonic()
        for at in range(done, done + int(steps)):
            wrong += program.result(program.submit(at % program.epoch)) != expected[name][at % program.epoch]
        took = (time.monotonic() - begun) * 1e3 / int(steps)
        lanes[(name, *lane)][1] += int(steps)
        print(json.dumps({"value": took, "wrong": wrong}), flush=True)


def serve(directory, program):
    """
    Runs `program` for ever, and answers questions in between. It has

        epoch       number of steps after which its state is set back to where it began
        submit(i)   begins step i of an epoch and returns at once, with something that is given to result()
        result(it)  waits for that step and returns a whole number that depends on all that it computed
        state()     a whole number that depends on the GPU memory that no step changes
        gpu_bytes() GPU memory that the framework has allocated

    The clock of a restored process goes on where it stopped: steps are timed by the wall clock.
    """
    expected = what_each_gives(program)
    asked = Asked(directory)
    under_way = collections.deque()
    steps = wrong = submitted = 0
    times = []
    ready()
    last = time.time()
    while True:
        while len(under_way) < LEAD:
            at = submitted % program.epoch
            under_way.append((at, program.submit(at)))
            submitted += 1
        at, what = under_way.popleft()
        wrong += program.result(what) != expected[at]
        steps += 1
        now = time.time()
        times.append((now - last) * 1e3)
        last = now
        if not asked.new():
            continue
        asked.answer(
            checksum=digest_of([program.state(), *expected]),
            tokens=digest_of(expected),
            steps=steps,
            wrong=wrong,
            step_ms=statistics.median(times),
            gpu_bytes=program.gpu_bytes(),
        )
        times.clear()
        last = time.time()
