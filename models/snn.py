"""Genes alone: a self-normalising network (subspace specification 5.1 and 11.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from models.batch import Batch, Outputs, Sizes
from models.layers import SNN_WIDTHS, SelfNormalisingNetwork
from models.model import Model
from models.params import check_range


@dataclass(frozen=True)
class SnnConfig:
    """`dropout` is AlphaDropout's probability after each of the four layers."""

    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_range("dropout", self.dropout, 0, 0.9)


class Snn(Model):
    """G -> 64 -> 48 -> 32 -> 128 -> outputs. The released code and ours are the same network."""

    name = "snn"
    needs = frozenset({"genes"})
    gene_groups = ("all",)
    Config = SnnConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 16, "lr": 2e-4, "weight_decay": 0.01, "patience": 10}
    reference_params: ClassVar = {}

    def __init__(self, config: SnnConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.encoder = SelfNormalisingNetwork(sizes.genes["all"], dropout=config.dropout)
        self.head = nn.Linear(SNN_WIDTHS[-1], sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        return Outputs(self.head(self.encoder(batch.genes["all"])))
