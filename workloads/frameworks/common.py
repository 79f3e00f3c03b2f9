# SPDX-License-Identifier: MIT
"""What the programs here share: the way to asked.py, the ballast, and for those on PyTorch, results that do not wait for the next step."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import asked  # noqa: E402


def arguments(description, ballast=True):
    """A parser with what every program here is told."""
    parser = asked.arguments(description)
    if ballast:
        parser.add_argument(
            "--ballast", type=int, default=1024, help="MiB of GPU memory that no step changes (default 1024)"
        )
    return parser


def torch_bits(tensor):
    """A sum over a tensor's bits, which differs if any of them does; stays on the GPU."""
    import torch

    words = tensor.detach().contiguous().view(torch.int32).flatten().to(torch.int64)
    return (words * torch.arange(1, 2 * words.numel(), 2, device=words.device)).sum()


class TorchProgram:
    """For asked.serve(): submit() is step(i), which leaves its digest on the GPU, and an event behind it."""

    epoch = 8

    def __init__(self):
        import torch

        if not torch.cuda.is_available():
            sys.exit(f"{os.path.basename(sys.argv[0])}: PyTorch finds no GPU")
        self.torch = torch
        self.aside = torch.cuda.Stream()

    def submit(self, i):
        digest = self.step(i)
        done = self.torch.cuda.Event()
        done.record()
        return digest, done

    def result(self, flight):
        digest, done = flight
        done.synchronize()
        with self.torch.cuda.stream(self.aside):  # the stream of the steps has the next one in it already
            return int(digest.item())

    def gpu_bytes(self):
        return self.torch.cuda.memory_reserved()


def serve(directory, program):
    asked.serve(directory, program)
