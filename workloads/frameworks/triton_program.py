# SPDX-License-Identifier: MIT
"""Triton: a kernel of its own that steps a state of whole numbers; PyTorch holds the memory."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import asked  # noqa: E402

parser = asked.arguments(__doc__)
parser.add_argument("--words", type=int, default=1 << 26, help="32-bit words of the state (default 2^26)")
options = parser.parse_args()

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

BLOCK = 1024


@triton.jit
def step(to, source, words, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < words
    word = tl.load(source + i, mask=inside)
    other = tl.load(source + (i + 4097) % words, mask=inside)
    tl.store(to + i, word * 1664525 + (other >> 7) + 1013904223, mask=inside)


def bits(tensor):
    words = tensor.to(torch.int64)
    return (words * torch.arange(1, 2 * words.numel(), 2, device=words.device)).sum()


class Steps:
    epoch = 8

    def __init__(self):
        self.aside = torch.cuda.Stream()
        self.first = torch.arange(options.words, device="cuda", dtype=torch.int32)
        self.states = [torch.empty_like(self.first) for _ in range(2)]

    def submit(self, i):
        source = self.first if i == 0 else self.states[i % 2]
        to = self.states[(i + 1) % 2]
        step[(triton.cdiv(options.words, BLOCK),)](to, source, options.words, BLOCK=BLOCK)
        digest = bits(to)
        done = torch.cuda.Event()
        done.record()
        return digest, done

    def result(self, flight):
        digest, done = flight
        done.synchronize()
        with torch.cuda.stream(self.aside):  # the stream of the steps has the next one in it already
            return int(digest.item())

    def state(self):
        return int(bits(self.first).item())

    def gpu_bytes(self):
        return torch.cuda.memory_reserved()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("triton_program.py: PyTorch finds no GPU")
    asked.serve(options.dir, Steps())
