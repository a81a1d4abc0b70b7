"""A model of slides and a model of genes side by side: the mean of their logits, or the one that a case allows.

A baseline for missing modalities (disentangled specification 15): late fusion of `abmil` and `snn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.abmil import AbmilConfig, TilePool, TilePooling
from models.batch import Batch, Outputs, Sizes
from models.feature_generation import ONLY_SLIDES, PREDICT_FROM, PRESENT
from models.layers import SNN_WIDTHS, SelfNormalisingNetwork
from models.params import check_choice, check_range

EACH, MEAN = TRAINED = ("each", "mean")


@dataclass(frozen=True)
class EnsembleConfig(AbmilConfig):
    """The slide half as in `abmil`.

    Attributes
    ----------
    gene_dropout : of the gene network
    trained : "each" half has the task's loss for itself, so that it can stand alone; or the "mean" of their logits has
        it, as published
    predict_from : "present" takes what a case has; "slides" takes RNA outside training only where there is no slide,
        which is how the baseline is compared with models of slides alone
    """

    gene_dropout: float = 0.1
    trained: str = EACH
    predict_from: str = PRESENT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gene_dropout", self.gene_dropout, 0, 0.9)
        check_choice("trained", self.trained, TRAINED)
        check_choice("predict_from", self.predict_from, PREDICT_FROM)


class Ensemble(TilePooling):
    """Two linear heads; a sample without a modality has the other's logits."""

    name = "ensemble"
    needs = frozenset({"slides", "genes"})
    may_lack = frozenset({"slides", "genes"})
    gene_groups = ("all",)
    Config = EnsembleConfig
    config: EnsembleConfig
    defaults: ClassVar = {"epochs": 30, "batch_size": 8, "lr": 2e-4, "weight_decay": 1e-3, "patience": 10}
    presets: ClassVar = {"published": {"trained": MEAN, "predict_from": ONLY_SLIDES}}

    def __init__(self, config: EnsembleConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.pool = TilePool(sizes.features, config)
        self.slide_head = nn.Linear(self.pool.width, sizes.outputs)
        self.genes = SelfNormalisingNetwork(sizes.genes["all"], dropout=config.gene_dropout)
        self.gene_head = nn.Linear(SNN_WIDTHS[-1], sizes.outputs)

    def forward(self, batch: Batch) -> Outputs:
        has_slides, has_genes = batch.has_slides[:, None], batch.has_genes[:, None]
        by_gene = self.gene_head(self.genes(batch.genes["all"]))
        by_slide = self.by_slide(batch, by_gene)
        if not self.training and self.config.predict_from == ONLY_SLIDES:
            has_genes = ~has_slides
        both = torch.where(has_slides & has_genes, (by_slide + by_gene) / 2, torch.where(has_slides, by_slide, by_gene))
        if not self.training or self.config.trained == MEAN:
            return Outputs(both)
        # In the loss of the half that it lacks, a sample is a constant: it must not count twice in the other.
        halves = (torch.where(has_slides, by_slide, both.detach()), torch.where(has_genes, by_gene, both.detach()))
        return Outputs(both, branches=halves)

    def by_slide(self, batch: Batch, blank: Tensor) -> Tensor:
        """Logits of the slide half; where there is no slide, something like `blank` that is not used."""
        rows = batch.has_slides.nonzero().squeeze(1)
        if not len(rows):
            return torch.zeros_like(blank)
        assert batch.features is not None and batch.mask is not None
        logits = self.slide_head(self.pool(batch.features[rows], batch.mask[rows]))
        return torch.zeros_like(blank, dtype=logits.dtype).index_copy(0, rows, logits)
