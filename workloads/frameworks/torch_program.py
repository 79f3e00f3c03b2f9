# SPDX-License-Identifier: MIT
"""PyTorch, training a small model: eagerly, by CUDA graphs, compiled, or with convolutions (cuDNN)."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is loaded: the same algorithm each time

from common import TorchProgram, arguments, serve, torch_bits as bits  # noqa: E402

parser = arguments(__doc__)
parser.add_argument("--mode", choices=["eager", "graphs", "compile", "conv"], default="eager")
options = parser.parse_args()

import torch  # noqa: E402

RATE = 1e-3


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


class Training(TorchProgram):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        net, shape = network()
        self.net = net.cuda()
        self.input = torch.randn(shape, device="cuda")
        self.parameters = list(self.net.parameters())
        self.first = [p.detach().clone() for p in self.parameters]
        self.ballast = torch.arange(options.ballast << 18, device="cuda", dtype=torch.int32)
        self.forward = torch.compile(self.net) if options.mode == "compile" else self.net
        self.graph = self.captured() if options.mode == "graphs" else None

    def descend(self):
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
                self.descend()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.digest = self.descend()
        return graph

    def step(self, i):
        if i == 0:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, self.first):
                    parameter.copy_(value)
        if self.graph is None:
            return self.descend()
        self.graph.replay()
        return self.digest.clone()

    def state(self):
        chunks = self.ballast.split(1 << 26)  # or the products alone would need eight times the memory
        return sum(int(bits(chunk).item()) * (i + 1) for i, chunk in enumerate(chunks))


if __name__ == "__main__":
    serve(options.dir, Training())
