"""Slides and genes side by side: attention pooling and a self-normalising network, concatenated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from models.abmil import AbmilConfig, TilePool, TilePooling
from models.batch import Batch, Outputs, Sizes
from models.layers import SNN_WIDTHS, SelfNormalisingNetwork
from models.params import check_range


@dataclass(frozen=True)
class ConcatConfig(AbmilConfig):
    """The slide half as in `abmil`; `embedding` is the slide vector's width, `gene_dropout` the gene network's."""

    embedding: int = 128
    gene_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("embedding", self.embedding, 1, 8192, integer=True)
        check_range("gene_dropout", self.gene_dropout, 0, 0.9)


class Concat(TilePooling):
    """Linear head on [slide embedding ; gene embedding]; reference mode is specification 11.4, per slide."""

    name = "concat"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = ConcatConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 2e-4, "weight_decay": 0.01, "patience": 10}
    reference_params: ClassVar = {"width": 0, "gated": False, "dropout": 0.0, "fixed_length": 2500}

    def __init__(self, config: ConcatConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.pool = TilePool(sizes.features, config)
        self.embed = nn.Linear(self.pool.width, config.embedding)
        self.genes = SelfNormalisingNetwork(sizes.genes["all"], dropout=config.gene_dropout)
        self.head = nn.Linear(config.embedding + SNN_WIDTHS[-1], sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        slide = self.embed(self.pool(batch.features, batch.mask))
        gene = self.genes(batch.genes["all"])
        return Outputs(self.head(torch.cat([slide, gene], dim=1)))
