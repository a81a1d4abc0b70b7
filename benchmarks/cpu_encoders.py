"""How should a network run where there is no GPU? CPU time of one thread per 224-px tile, random weights.

The order of memory, automatic mixed precision and compilation against torch's defaults, on a ResNet-50 and a ViT-S. One
command, ``python -m benchmarks.cpu_encoders``; nothing is required of these figures, they are the reason for what
`pipeline.encoder_network.Encoder` does. Compiled execution is left out where there is no C++ compiler.
"""

from __future__ import annotations

import copy
import shutil
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from pipeline.encoder_network import build_network

NETWORKS = ("resnet50", "vit_small_patch16_224")
TILES = 8
ROUNDS = 3


def least_ms(work: Callable[[], object]) -> float:
    """CPU-ms per tile, the fastest of some rounds after one that warms up."""
    work()
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken) / TILES * 1e3


def ways(network: nn.Module) -> dict[str, Callable[[], torch.Tensor]]:
    """Ways of running a network on the same tiles."""
    images = torch.randn(TILES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    last = images.contiguous(memory_format=torch.channels_last)
    ordered = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def mixed() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ordered(last)

    found = {"plain": lambda: network(images), "channels last": lambda: ordered(last), "bfloat16 autocast": mixed}
    if shutil.which("g++") or shutil.which("clang++"):
        compiled, frozen = torch.compile(ordered), torch.compile(ordered, options={"freezing": True})
        found |= {"compiled": lambda: compiled(last), "compiled, weights frozen in": lambda: frozen(last)}
    return found


@torch.inference_mode()
def main() -> int:
    torch.set_num_threads(1)
    for name in NETWORKS:
        plain = 0.0
        for way, work in ways(build_network(name, {})).items():
            started = time.perf_counter()
            work()
            first, each = time.perf_counter() - started, least_ms(work)
            plain = plain or each
            print(f"{name:<24} {way:<28} {each:7.1f} CPU-ms/tile  ratio {plain / each:5.2f}  first call {first:5.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
