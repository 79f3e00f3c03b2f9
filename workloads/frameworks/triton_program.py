# SPDX-License-Identifier: MIT
"""Triton: a kernel of its own that steps a state of whole numbers; PyTorch holds the memory."""

from common import TorchProgram, arguments, serve, torch_bits as bits

parser = arguments(__doc__, ballast=False)
parser.add_argument("--words", type=int, default=1 << 26, help="32-bit words of the state (default 2^26)")
options = parser.parse_args()

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

BLOCK = 1024


@triton.jit
def advance(to, source, words, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < words
    word = tl.load(source + i, mask=inside)
    other = tl.load(source + (i + 4097) % words, mask=inside)
    tl.store(to + i, word * 1664525 + (other >> 7) + 1013904223, mask=inside)


class Steps(TorchProgram):
    def __init__(self):
        super().__init__()
        self.first = torch.arange(options.words, device="cuda", dtype=torch.int32)
        self.states = [torch.empty_like(self.first) for _ in range(2)]

    def step(self, i):
        source = self.first if i == 0 else self.states[i % 2]
        to = self.states[(i + 1) % 2]
        advance[(triton.cdiv(options.words, BLOCK),)](to, source, options.words, BLOCK=BLOCK)
        return bits(to)

    def state(self):
        return int(bits(self.first).item())


if __name__ == "__main__":
    serve(options.dir, Steps())
