"""Slides alone, without learning on tiles: the mean of a case's tiles and the regularised linear fit of `linear`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.batch import Batch, Sizes, Targets
from models.linear import Linear, LinearConfig


class MeanPool(Linear):
    """logits = standardised mean of all tiles of the case W' + b; Cox regression for survival."""

    name = "meanpool"
    needs = frozenset({"slides"})
    gene_groups = ()
    Config = LinearConfig
    defaults: ClassVar = {"epochs": 1, "batch_size": 8, "lr": 1.0, "weight_decay": 0.0, "patience": 0}

    centre: Tensor
    scale: Tensor

    def __init__(self, config: LinearConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.register_buffer("centre", torch.zeros(sizes.features, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(sizes.features, dtype=torch.float64))

    @staticmethod
    def width(sizes: Sizes) -> int:
        return sizes.features

    def columns(self, batch: Batch) -> Tensor:
        return (mean_of_tiles(batch) - self.centre) / self.scale

    def condensed(self, batch: Batch) -> Batch:
        """The mean in the place of the tiles: one tile per sample."""
        mean, one = mean_of_tiles(batch)[:, None], torch.ones(len(batch), 1, dtype=torch.bool, device=self.bias.device)
        return replace(batch, features=mean, mask=one, slide=None, cell=None, coords=None)

    def fit(
        self, batch: Batch, targets: Targets, validation: tuple[Batch, Targets] | None
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Standardise by the training cases, then fit. A feature that is the same in all of them keeps scale 1."""
        mean = mean_of_tiles(batch)
        deviation = mean.std(dim=0, correction=0)
        self.centre.copy_(mean.mean(dim=0))
        self.scale.copy_(torch.where(deviation > 1e-9 * mean.abs().amax(dim=0), deviation, 1.0))
        return super().fit(batch, targets, validation)


def mean_of_tiles(batch: Batch) -> Tensor:
    """Mean over the tiles of each sample, float64 [samples, features]."""
    assert batch.features is not None and batch.mask is not None
    tiles = batch.features.double().masked_fill(~batch.mask[..., None], 0.0)
    return tiles.sum(dim=1) / batch.mask.sum(dim=1, keepdim=True)
