"""Slides alone: attention-based multiple-instance learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.batch import Batch, Outputs, Sizes
from models.layers import AttentionPool
from models.model import Model
from models.params import check_range

POOL = "pool"  #: name of the attention map of models with one pool


@dataclass(frozen=True)
class AbmilConfig:
    """Gated attention on projected tiles by default.

    Attributes
    ----------
    width : width of the learned projection of the tiles; 0 pools the encoder's features as they are
    hidden : width of the attention network
    gated : multiply by a sigmoid gate (Ilse et al. 2018, equation 9) or not (equation 8)
    dropout : after the projection and inside the attention network
    fixed_length : None takes every tile of a case; a number resamples each slide, as one sample, to so many tiles
    """

    width: int = 256
    hidden: int = 128
    gated: bool = True
    dropout: float = 0.25
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        check_range("width", self.width, 0, 8192, integer=True)
        check_range("hidden", self.hidden, 1, 8192, integer=True)
        check_range("dropout", self.dropout, 0, 0.9)
        if self.fixed_length is not None:
            check_range("fixed_length", self.fixed_length, 1, 100_000, integer=True)


class TilePool(nn.Module):
    """Tiles [samples, tiles, features] to one vector per sample [samples, `width`]."""

    def __init__(self, features: int, config: AbmilConfig) -> None:
        super().__init__()
        self.width = config.width or features
        self.project: nn.Module = nn.Identity()
        if config.width:
            self.project = nn.Sequential(nn.Linear(features, config.width), nn.ReLU(), nn.Dropout(config.dropout))
        self.attention = AttentionPool(self.width, config.hidden, config.gated, config.dropout)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        return self.attention(self.project(features), mask)

    def weights(self, features: Tensor, mask: Tensor) -> Tensor:
        """The attention by which tiles are pooled, [samples, tiles]; zeros for a sample without a tile."""
        return self.attention.weights(self.project(features), mask).masked_fill(~mask, 0.0)


class TilePooling(Model):
    """Base of models with one attention pool over the tiles of a case, their `pool`."""

    pool: nn.Module

    @torch.no_grad()
    def attention_maps(self, batch: Batch) -> dict[str, Tensor]:
        """The pool's weights; none where the configuration has another pool, or no sample a slide."""
        if batch.features is None or batch.mask is None or not isinstance(self.pool, TilePool):
            return {}
        return {POOL: self.pool.weights(batch.features, batch.mask)}


class Abmil(TilePooling):
    """Projection, attention pooling over all tiles of the case, linear head.

    Reference mode is AttMIL of the subspace specification 11.1: no projection, no gate, no dropout, per slide.
    """

    name = "abmil"
    needs = frozenset({"slides"})
    Config = AbmilConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 2e-4, "weight_decay": 1e-4, "patience": 10}
    reference_params: ClassVar = {"width": 0, "gated": False, "dropout": 0.0, "fixed_length": 2500}

    def __init__(self, config: AbmilConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.pool = TilePool(sizes.features, config)
        self.head = nn.Linear(self.pool.width, sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        return Outputs(self.head(self.pool(batch.features, batch.mask)))
