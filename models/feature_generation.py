"""Slides and genes, with the gene embedding made up from the slide where RNA is missing.

A baseline for missing modalities (disentangled specification 15): the network of `concat` and an auto-encoder from the
slide's embedding to the gene network's, taught by the cases that have both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import mse_loss

from models.abmil import TilePool, TilePooling
from models.batch import Batch, Outputs, Sizes
from models.concat import ConcatConfig
from models.layers import SNN_WIDTHS, SelfNormalisingNetwork, full_precision
from models.params import check_choice, check_range

PRESENT, ONLY_SLIDES = PREDICT_FROM = ("present", "slides")


@dataclass(frozen=True)
class FeatureGenerationConfig(ConcatConfig):
    """The two halves as in `concat`.

    Attributes
    ----------
    bottleneck : of the auto-encoder
    reconstruction : weight of its mean squared error; the gene network's embedding is the fixed aim
    predict_from : "present" generates for cases without RNA only; "slides" generates for every case outside training,
        as if none had RNA, which is how the baseline is compared with models of slides alone
    """

    bottleneck: int = 64
    reconstruction: float = 1.0
    predict_from: str = PRESENT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("bottleneck", self.bottleneck, 1, 8192, integer=True)
        check_range("reconstruction", self.reconstruction, 0, 1000)
        check_choice("predict_from", self.predict_from, PREDICT_FROM)


class FeatureGeneration(TilePooling):
    """Linear head on [slide ; gene], trained with the true gene embedding and with the generated one."""

    name = "feature-generation"
    needs = frozenset({"slides", "genes"})
    may_lack = frozenset({"genes"})
    gene_groups = ("all",)
    Config = FeatureGenerationConfig
    config: FeatureGenerationConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 2e-4, "weight_decay": 0.01, "patience": 10}

    def __init__(self, config: FeatureGenerationConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.pool = TilePool(sizes.features, config)
        self.embed = nn.Linear(self.pool.width, config.embedding)
        self.genes = SelfNormalisingNetwork(sizes.genes["all"], dropout=config.gene_dropout)
        self.generate = nn.Sequential(
            nn.Linear(config.embedding, config.bottleneck), nn.ReLU(), nn.Linear(config.bottleneck, SNN_WIDTHS[-1])
        )
        self.head = nn.Linear(config.embedding + SNN_WIDTHS[-1], sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        assert batch.features is not None and batch.mask is not None
        slide = self.embed(self.pool(batch.features, batch.mask))
        generated = self.generate(slide)
        without = self.head(torch.cat([slide, generated], dim=1))
        if not self.training and self.config.predict_from == ONLY_SLIDES:
            return Outputs(without)
        known = batch.has_genes
        gene = torch.where(known[:, None], self.genes(batch.genes["all"]), generated)
        logits = self.head(torch.cat([slide, gene], dim=1))
        if not self.training:
            return Outputs(logits)
        error = mse_loss(full_precision(generated)[known], full_precision(gene)[known].detach(), reduction="sum")
        loss = error / max(1, int(known.sum()) * SNN_WIDTHS[-1])  # 0 in a batch without RNA
        return Outputs(logits, {"reconstruction": self.config.reconstruction * loss}, branches=(logits, without))
