# SPDX-License-Identifier: MIT
"""Times PyTorch's first CUDA calls after its import, and prints one line of JSON.

    import_ms       wall clock of `import torch`
    first_call_ms   wall clock of the first call that needs a context: a small allocation on the GPU, and waiting for it
    second_call_ms  the same again, now that everything is there
    first_kernel_ms wall clock of the first kernels after that: filling a tensor and summing it up
    sum             what the GPU computed; the asker compares it with what it must be
"""

import json
import sys
import time


def milliseconds(work):
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, result


def load():
    import torch

    return torch


def main():
    import_ms, torch = milliseconds(load)
    count = 1 << 16

    def call():
        torch.empty(count, device="cuda", dtype=torch.float32)
        torch.cuda.synchronize()

    first_call_ms, _ = milliseconds(call)
    second_call_ms, _ = milliseconds(call)
    first_kernel_ms, total = milliseconds(lambda: int(torch.ones(count, device="cuda").sum().item()))
    json.dump(
        {
            "import_ms": import_ms,
            "first_call_ms": first_call_ms,
            "second_call_ms": second_call_ms,
            "first_kernel_ms": first_kernel_ms,
            "sum": total,
            "count": count,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(0),
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
