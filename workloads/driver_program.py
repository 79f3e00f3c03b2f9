# SPDX-License-Identifier: MIT
"""The driver's API itself, by ctypes, as the software driver has no PyTorch: memory is set, copied and read when it is its turn."""

import ctypes
import sys

import asked

parser = asked.arguments(__doc__)
parser.add_argument("--words", type=int, default=1 << 12, help="32-bit words that a step sets and copies (default 2^12)")
options = parser.parse_args()

COPIES = 16


def driver():
    """The driver's library as an object whose functions raise what they do not do."""
    library = ctypes.CDLL("libcuda.so.1")

    class Driver:
        def __getattr__(self, name):
            function = getattr(library, name)

            def call(*arguments):
                result = function(*arguments)
                if result != 0:
                    sys.exit(f"driver_program.py: {name}: {result}")

            return call

    return Driver()


class Copies:
    epoch = 4

    def __init__(self, cu):
        self.cu = cu
        self.bytes = ctypes.c_size_t(4 * options.words)
        self.memory = [ctypes.c_uint64() for _ in range(2)]
        for memory in self.memory:
            self.cu.cuMemAlloc_v2(ctypes.byref(memory), self.bytes)

    def submit(self, i):
        first, second = self.memory
        self.cu.cuMemsetD32Async(first, i + 1, ctypes.c_size_t(options.words), None)
        for _ in range(COPIES):
            self.cu.cuMemcpyDtoDAsync_v2(second, first, self.bytes, None)

    def result(self, _):
        last = ctypes.c_uint32()
        self.cu.cuStreamSynchronize(None)
        at = ctypes.c_uint64(self.memory[1].value + self.bytes.value - 4)
        self.cu.cuMemcpyDtoH_v2(ctypes.byref(last), at, ctypes.c_size_t(4))
        return last.value


if __name__ == "__main__":
    cu, context = driver(), ctypes.c_void_p()
    cu.cuInit(0)
    cu.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    cu.cuCtxSetCurrent(context)
    asked.take_turns(copies=lambda: Copies(cu))
