"""What goes into a model and what comes out: plain tensors with named dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Widths a model is built for: patch features, genes per group, outputs (classes, or survival intervals), and
    encoded columns of the clinical sheet. Of every gene family, in the order of their list, the columns of its genes
    within the group "all"."""

    features: int
    genes: dict[str, int]
    outputs: int
    kind: str
    clinical: int = 0
    families: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Targets:
    """What is known of each sample. Survival sets `interval`, `time`, `event`; classification sets `label`.

    Attributes
    ----------
    label, interval : int64 [samples], class code and survival interval (0 = earliest)
    time : float64 [samples], in the task's unit
    event : int64 [samples], 1 = event, 0 = censored
    patient : int64 [samples], equal for samples of one patient; None where every case is another patient
    """

    label: Tensor | None = None
    interval: Tensor | None = None
    time: Tensor | None = None
    event: Tensor | None = None
    patient: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        return Targets(**{f.name: _to(getattr(self, f.name), device) for f in fields(self)})


@dataclass(frozen=True)
class Batch:
    """Samples side by side. A sample is a case with all its slides, or one slide in reference mode.

    Attributes
    ----------
    case_ids : case of each sample
    features : float32 [samples, tiles, width]; zeros where `mask` is False. None for a model without slides, and where
        no sample has one
    mask : bool [samples, tiles], True where there is a tile
    slide : int64 [samples, tiles], slide number within the sample, -1 where there is no tile
    cell : int64 [samples, tiles, 2], (column, row) on the slide's lattice, from 0 per slide; 0 where there is no tile
    coords : int64 [samples, tiles, 2], upper-left corner (x, y) in level-0 pixels; 0 where there is no tile
    genes : group name -> float32 [samples, genes]. Empty for a model without genes
    clinical : float32 [samples, columns], encoded columns of the case sheet. None for a model without them
    has_slides, has_genes : bool [samples], which modality the sample really has
    coarser : the same samples' tiles at a coarser magnification, for a model of two; None for others
    parent : int64 [samples, tiles], position in `coarser` of the tile that a tile lies in; -1 where there is none
    lesson : name -> [samples, ...], what a frozen teacher says of the samples; zeros for those it cannot judge
    taught : bool [samples], which samples the teacher could judge. None without a teacher
    embedding : float32 [samples, width], what frozen encoders made of the samples, in place of their inputs; else None
    """

    case_ids: tuple[str, ...]
    has_slides: Tensor
    has_genes: Tensor
    features: Tensor | None = None
    mask: Tensor | None = None
    slide: Tensor | None = None
    cell: Tensor | None = None
    coords: Tensor | None = None
    genes: dict[str, Tensor] = field(default_factory=dict)
    clinical: Tensor | None = None
    coarser: Batch | None = None
    parent: Tensor | None = None
    lesson: dict[str, Tensor] = field(default_factory=dict)
    taught: Tensor | None = None
    embedding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.case_ids)

    def to(self, device: torch.device) -> Batch:
        return Batch(**{f.name: _to(getattr(self, f.name), device) for f in fields(self)})


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of equal shapes and one magnification, one after the other."""
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(Batch) if f.name not in ("case_ids", "genes", "coarser", "lesson")):
        parts = [getattr(batch, name) for batch in batches]
        values[name] = None if parts[0] is None else torch.cat(parts)
    genes = {group: torch.cat([batch.genes[group] for batch in batches]) for group in batches[0].genes}
    return Batch(tuple(case_id for batch in batches for case_id in batch.case_ids), **values, genes=genes)


@dataclass(frozen=True)
class Outputs:
    """What a model's forward pass returns.

    Attributes
    ----------
    logits : [samples, outputs]; class scores, hazard logits per interval, or [samples, 1] log relative hazard (Cox);
        [samples, 0] of a model without a task
    branches : logits that are trained in place of `logits`, the task's losses added up; empty where `logits` is trained
    losses : name -> scalar that is added to the task's loss during training, already weighted
    hidden : name -> tensor that the model's own `edit_gradients` reads
    logged : name -> scalar that the history records and nothing is trained by
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, Tensor] = field(default_factory=dict)
    branches: tuple[Tensor, ...] = ()
    logged: dict[str, Tensor] = field(default_factory=dict)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _to(entry, device) for name, entry in value.items()}
    if isinstance(value, Batch):
        return value.to(device)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
