# SPDX-License-Identifier: MIT
"""JAX, which allocates its share of the GPU's memory at the start (XLA_PYTHON_CLIENT_MEM_FRACTION) and manages it itself."""

import os
import sys

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")

from common import arguments, serve  # noqa: E402

options = arguments(__doc__).parse_args()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

SIZE = 2048


def bits(array):
    """A sum over an array's bits, modulo 2^32, which differs if any of them does; stays on the GPU."""
    words = jax.lax.bitcast_convert_type(array, jnp.uint32).ravel()
    return (words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)


@jax.jit
def step(now, weights):
    after = jnp.tanh(now @ weights)
    return after, bits(after)


class Products:
    epoch = 8

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.weights = jax.random.normal(keys[0], (SIZE, SIZE), jnp.float32) / SIZE**0.5
        self.first = jax.random.normal(keys[1], (SIZE, SIZE), jnp.float32)
        self.ballast = jnp.arange(options.ballast << 18, dtype=jnp.uint32)
        self.sum = jax.jit(bits)

    def submit(self, i):
        self.now, digest = step(self.first if i == 0 else self.now, self.weights)
        return digest

    def result(self, digest):
        return int(digest)

    def state(self):
        return int(self.sum(self.ballast))

    def gpu_bytes(self):
        return jax.local_devices()[0].memory_stats().get("bytes_limit", 0)


if __name__ == "__main__":
    if jax.default_backend() != "gpu":
        sys.exit("jax_program.py: JAX finds no GPU")
    serve(options.dir, Products())
