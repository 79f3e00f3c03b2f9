# SPDX-License-Identifier: MIT
"""CuPy: products of matrices (cuBLAS) and a kernel of its own, one after another on one state."""

from common import arguments, serve

options = arguments(__doc__).parse_args()

import cupy  # noqa: E402

SIZE = 2048


def bits(array):
    """A sum over an array's bits, which differs if any of them does; stays on the GPU."""
    words = array.view(cupy.int32).ravel().astype(cupy.int64)
    return (words * cupy.arange(1, 2 * words.size, 2, dtype=cupy.int64)).sum()


class Products:
    epoch = 8

    def __init__(self):
        random = cupy.random.RandomState(0)
        self.weights = random.standard_normal((SIZE, SIZE), dtype=cupy.float32) / SIZE**0.5
        self.first = random.standard_normal((SIZE, SIZE), dtype=cupy.float32)
        self.squash = cupy.ElementwiseKernel("float32 x", "float32 y", "y = x / (1.0f + fabsf(x))", "cudapool_squash")
        self.aside = cupy.cuda.Stream(non_blocking=True)
        self.ballast = cupy.arange(options.ballast << 18, dtype=cupy.int32)

    def submit(self, i):
        self.now = self.squash((self.first if i == 0 else self.now) @ self.weights)
        digest = bits(self.now)
        done = cupy.cuda.Event(disable_timing=True)
        done.record()
        return digest, done

    def result(self, flight):
        digest, done = flight
        done.synchronize()
        return int(digest.get(stream=self.aside))  # the stream of the steps has the next one in it already

    def state(self):
        return sum(int(bits(chunk).get()) * (i + 1) for i, chunk in enumerate(cupy.array_split(self.ballast, 16)))

    def gpu_bytes(self):
        return cupy.get_default_memory_pool().total_bytes()


if __name__ == "__main__":
    serve(options.dir, Products())
