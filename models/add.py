"""Slides and genes summed: attention pooling and a self-normalising network, one linear head on the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from models.abmil import AbmilConfig, TilePool, TilePooling
from models.batch import Batch, Outputs, Sizes
from models.layers import SNN_WIDTHS, SelfNormalisingNetwork
from models.params import check_range


@dataclass(frozen=True)
class AddConfig(AbmilConfig):
    """The slide half as in `abmil`; `gene_dropout` is the gene network's."""

    gene_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gene_dropout", self.gene_dropout, 0, 0.9)


class Add(TilePooling):
    """Linear head on slide embedding + gene embedding; reference mode is specification 11.4, per slide."""

    name = "add"
    needs = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = AddConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 2e-4, "weight_decay": 0.01, "patience": 10}
    reference_params: ClassVar = {"width": 0, "gated": False, "dropout": 0.0, "fixed_length": 2500}

    def __init__(self, config: AddConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.pool = TilePool(sizes.features, config)
        self.embed = nn.Linear(self.pool.width, SNN_WIDTHS[-1])
        self.genes = SelfNormalisingNetwork(sizes.genes["all"], dropout=config.gene_dropout)
        self.head = nn.Linear(SNN_WIDTHS[-1], sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        slide = self.embed(self.pool(batch.features, batch.mask))
        return Outputs(self.head(slide + self.genes(batch.genes["all"])))
