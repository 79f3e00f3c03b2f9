# SPDX-License-Identifier: MIT
"""PyTorch, training a small model: eagerly, by CUDA graphs, compiled, or with convolutions (cuDNN)."""

import os
import sys

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is loaded: the same algorithm each time
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import asked  # noqa: E402

parser = asked.arguments(__doc__)
parser.add_argument("--mode", choices=["eager", "graphs", "compile", "conv"], default="eager")
parser.add_argument("--ballast", type=int, default=1024, help="MiB of GPU memory that no step changes (default 1024)")
options = parser.parse_args()

import torch  # noqa: E402

RATE = 1e-3


def bits(tensor):
    """A sum over a tensor's bits, which differs if any of them does; stays on the GPU."""
    words = tensor.detach().contiguous().view(torch.int32).flatten().to(torch.int64)
    return (words * torch.arange(1, 2 * words.numel(), 2, device=words.device)).sum()


def network():
    if options.mode == "conv":
        return torch.nn.Sequential(
            torch.nn.Conv2d(16, 64, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(64, 16, 3, padding=1),
        ), (8, 16, 64, 64)
    return torch.nn.Sequential(
        torch.nn.Linear(1024, 4096),
        torch.nn.GELU(),
        torch.nn.Linear(4096, 1024),
        torch.nn.LayerNorm(1024),
    ), (256, 1024)


class Training:
    epoch = 8

    def __init__(self):
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        net, shape = network()
        self.net = net.cuda()
        self.input = torch.randn(shape, device="cuda")
        self.parameters = list(self.net.parameters())
        self.first = [p.detach().clone() for p in self.parameters]
        self.aside = torch.cuda.Stream()
        self.ballast = torch.arange(options.ballast << 18, device="cuda", dtype=torch.int32)
        self.forward = torch.compile(self.net) if options.mode == "compile" else self.net
        self.graph = self.captured() if options.mode == "graphs" else None

    def step(self):
        """One step of gradient descent; the digest is of the parameters after it."""
        loss = self.forward(self.input).square().mean()
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters, gradients):
                parameter.sub_(gradient, alpha=RATE)
            return sum(bits(parameter) for parameter in self.parameters)

    def captured(self):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.digest = self.step()
        return graph

    def submit(self, i):
        if i == 0:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, self.first):
                    parameter.copy_(value)
        if self.graph is None:
            digest = self.step()
        else:
            self.graph.replay()
            digest = self.digest.clone()
        done = torch.cuda.Event()
        done.record()
        return digest, done

    def result(self, flight):
        digest, done = flight
        done.synchronize()
        with torch.cuda.stream(self.aside):  # the stream of the steps has the next one in it already
            return int(digest.item())

    def state(self):
        chunks = self.ballast.split(1 << 26)  # or the products alone would need eight times the memory
        return sum(int(bits(chunk).item()) * (i + 1) for i, chunk in enumerate(chunks))

    def gpu_bytes(self):
        return torch.cuda.memory_reserved()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("torch_program.py: PyTorch finds no GPU")
    asked.serve(options.dir, Training())
