"""Rows of all processes of a `torch.distributed` group side by side, with gradients back to where each came from."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional

from models.batch import Targets


class _AllRows(torch.autograd.Function):
    """Equal numbers of rows of every process; the gradient of a row is summed over the processes that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous()
        distributed.all_reduce(summed)
        return summed[distributed.get_rank()]


def processes() -> int:
    """Processes of the group; 1 where there is none."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """[rows, width] of this process to [rows of all, width] in the order of ranks, and where its own begin.

    Processes may have different numbers of rows.
    """
    if processes() == 1:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(processes())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(count) for count in counts]
    padded = _AllRows.apply(functional.pad(rows, (0, 0, 0, max(lengths) - len(rows))))
    parts = [part[:length] for part, length in zip(padded, lengths, strict=True)]
    return torch.cat(parts), sum(lengths[: distributed.get_rank()])


def gathered_targets(targets: Targets) -> Targets:
    """Targets of the samples of all processes, in the order of ranks; those of each alone know nothing of patients."""
    if processes() == 1:
        return targets
    given = {f.name: getattr(targets, f.name) for f in fields(Targets) if f.name != "patient"}
    return Targets(**{k: None if v is None else gathered(v[:, None])[0].flatten() for k, v in given.items()})
